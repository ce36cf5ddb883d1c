"""What the products of int8 could be computed with in onnxruntime: rows (B, H) by a weight (H, 4*H), 50 in a row.

`MatMulInteger` with rounding of the rows before it and scales after it is what our files have. `MatMulNBits` is an
operator of onnxruntime alone: 8 bits, blocks of 128, accuracy level 4, so that it computes with integers, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from rich.progress import track

from deploy_rnn.export.precision.rounding import ROW_LEVELS, ROW_ZERO, rounded_columns
from deploy_rnn.onnx_bytes import OnnxBytes
from deploy_rnn.runtime import open_session
from deploy_rnn.timing import compare

BATCHES = [1, 32]
PRODUCTS = 50
BLOCK = 128
BLOCKS = {"rounds": 2, "calls": 10, "warm_up": 2, "pause": 0.03, "block_seconds": 0.15}
MICROSOFT = "com.microsoft"

Kernel = tuple[list[onnx.NodeProto], Mapping[str, np.ndarray]]
"""Nodes from `rows` to `product`, and their constants."""


def measure_kernels(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Microseconds of one product of each kernel, and its largest error."""
    rows = []
    for hidden in track(sizes, "kernels"):
        random = np.random.default_rng(0)
        weight = random.uniform(-1, 1, (4 * hidden, hidden)) / np.sqrt(hidden)
        weight = weight.astype(np.float32)
        kernels = {name: make(weight) for name, make in KERNELS.items()}
        for batch in BATCHES:
            states = random.uniform(-1, 1, (batch, hidden)).astype(np.float32)
            rows.append({"H": hidden, "B": batch, "kernels": _measured(kernels, weight, states)})
    return rows


def float32_kernel(weight: np.ndarray) -> Kernel:
    node = helper.make_node("MatMul", ["rows", "weight"], ["product"])
    return [node], {"weight": np.ascontiguousarray(weight.T)}


def integer_kernel(weight: np.ndarray) -> Kernel:
    levels, steps = rounded_columns(weight)
    nodes = [
        helper.make_node("QuantizeLinear", ["rows", "row_step", "row_zero"], ["rounded"]),
        helper.make_node("MatMulInteger", ["rounded", "levels", "row_zero", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["numbers"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scales"], ["product"]),
    ]
    return nodes, {
        "levels": levels,
        "scales": steps / np.float32(ROW_LEVELS),
        "row_step": np.float32(1 / ROW_LEVELS),
        "row_zero": np.array(ROW_ZERO, np.uint8),
        "zero": np.array(0, np.int8),
    }


def blocks_kernel(weight: np.ndarray) -> Kernel:
    columns, width = weight.shape
    blocks = weight.reshape(columns, width // BLOCK, BLOCK)
    scales = np.abs(blocks).max(axis=2) / 127
    levels = np.round(blocks / scales[..., None]) + 128
    node = helper.make_node(
        "MatMulNBits", ["rows", "levels", "scales"], ["product"], domain=MICROSOFT,
        K=width, N=columns, bits=8, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip
    return [node], {
        "levels": levels.astype(np.uint8),
        "scales": scales.reshape(-1).astype(np.float32),
    }


KERNELS = {
    "float32": float32_kernel,
    "MatMulInteger, 7 bits": integer_kernel,
    "MatMulNBits, 8 bits": blocks_kernel,
}


def _measured(
    kernels: Mapping[str, Kernel], weight: np.ndarray, states: np.ndarray
) -> dict[str, dict[str, float]]:
    sessions = {name: _session(kernel, weight.shape) for name, kernel in kernels.items()}
    feeds = {"rows": states}

    def repeat(session: Any) -> None:
        for _ in range(PRODUCTS):
            session.run(None, feeds)

    runs = {name: _call(repeat, session) for name, session in sessions.items()}
    timings = compare(runs, **BLOCKS)  # type: ignore[arg-type]
    exact = states.astype(np.float64) @ weight.T.astype(np.float64)
    results = {}
    for name, session in sessions.items():
        [product] = session.run(None, feeds)
        results[name] = {
            "microseconds": 1e6 * timings[name].median / PRODUCTS,
            "error": float(np.abs(product - exact).max()),
        }
    return results


def _call(function: Any, argument: Any) -> Any:
    return lambda: function(argument)


def _session(kernel: Kernel, shape: tuple[int, ...]) -> Any:
    nodes, constants = kernel
    columns, width = shape
    graph = helper.make_graph(
        nodes,
        "kernel",
        [helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["B", width])],
        [helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, ["B", columns])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return open_session(OnnxBytes("a kernel", model.SerializeToString()))
