"""The integers of a file in eight bits, one by one: its weights are the model's, and its products are exact here.

What `runs` compares are outputs, and those of a large network may differ by more than a fault: once a number near the
middle of two levels has gone to the other side, the runs drift apart. Integers do not:

1. Every column of a product's weight is that of a weight of the model, rounded; and so is every table. Their order is
   left to `runs`: a wrong one is no small fault.
2. What the file says of its products holds: in "all", no step multiplies by a weight in float32; in "state", nothing
   else than states is multiplied in eight bits.
3. The products of each such weight are computed once by onnxruntime, on the largest rows there are, and compared with
   the exact ones: a processor that adds two of them in 16 bits would be off.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from deploy_rnn.onnx_bytes import OnnxBytes
from deploy_rnn.runtime import open_session

from ..precision.layers import LEVELS
from ..precision.rounding import ROW_ZERO
from ..precision.scope import Int8Scope
from ..precision.state_values import state_values
from ..precision.weight_products import GraphConstants, WeightProduct
from ..precision.weights import CellKeys, RoundedWeights, ScaledLevels, scaled_columns, scaled_key

EXTREME_ROWS = 8
"""How many rows are multiplied, of levels 0 and 255 only."""


@dataclass(frozen=True)
class FileIntegers:
    """The integers of a file.

    Attributes:
        tables: those of each embedding, by its name.
        weights: those of each weight of a product, with the scales of its columns, by its name.
        stateless: the weights that multiply in loops, and there no states, by their names.
        unrounded: `weight_key` of weights in float32 -> whether it multiplies in a loop.
    """

    tables: Mapping[str, np.ndarray]
    weights: Mapping[str, ScaledLevels]
    stateless: frozenset[str]
    unrounded: Mapping[bytes, bool]

    @classmethod
    def read(cls, path: Path) -> "FileIntegers":
        model = ir.load(path)
        tables = {}
        for name, value in model.graph.initializers.items():
            if name.endswith(LEVELS) and value.const_value is not None:
                tables[name] = value.const_value.numpy()
        weights: dict[str, ScaledLevels] = {}
        stateless: dict[bytes, str] = {}
        of_states: set[bytes] = set()
        unrounded: dict[bytes, bool] = {}
        carried = state_values(model.graph)
        constants = GraphConstants(model.opset_imports[""])
        in_loops: set[ir.Node] = set()
        for node in model.graph:
            if node.op_type == "Scan":
                in_loops.update(node.attributes["body"].as_graph().all_nodes())
        for node in model.graph.all_nodes():
            is_in_loop = node in in_loops
            constant = _constant(node, 1)
            if node.op_type == "MatMulInteger" and constant is not None:
                name = str(constant.name)
                weights.setdefault(name, (constant.numpy(), _scales(node)))
                key = scaled_key(*weights[name])
                stateless.setdefault(key, name)
                if not is_in_loop or node.inputs[0] in carried:
                    of_states.add(key)
            product = WeightProduct.of(node, constants)
            if product is not None:
                unrounded[product.key] = unrounded.get(product.key, False) or is_in_loop
        names = frozenset(name for key, name in stateless.items() if key not in of_states)
        return cls(tables, weights, names, unrounded)


def integer_faults(integers: FileIntegers, weights: RoundedWeights) -> Iterator[str]:
    """A sentence for each weight of a file that is not one of the model's, or whose products are not exact."""
    for name, table in integers.tables.items():
        if table.tobytes() not in weights.tables:
            yield f"the table `{name}` is not that of an embedding of the model, rounded"
    for name, (levels, scales) in integers.weights.items():
        columns = set(scaled_columns(levels, scales)) if scales.size else {b""}
        if not columns <= weights.columns:
            yield f"a column of `{name}`, or its scale, is not that of a weight of the model, rounded"
    for name, (levels, _) in integers.weights.items():
        wrong = _largest_fault(levels)
        if wrong:
            yield (
                f"this processor does not add the products of `{name}` exactly: it is off by {wrong:,}, as processors "
                "without VNNI are with weights of eight bits"
            )


def scope_faults(integers: FileIntegers, scope: Int8Scope, cells: CellKeys) -> Iterator[str]:
    """A sentence for each product that is not what a file says of its products.

    What layers multiply their inputs by is among the columns that `integer_faults` looks for, or left to `runs`.

    Args:
        cells: of the model.
    """
    if not scope.rounds_inputs:
        for name in integers.stateless:
            yield f"it says that products of states alone are of eight bits, and `{name}` multiplies none"
        return
    for key, is_in_loop in integers.unrounded.items():
        if is_in_loop or key in cells.of_states | cells.of_inputs:
            yield "it says that all products are of eight bits, and a step multiplies by a weight in float32"


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    """The constant that is an input of a node; None if there is no such input, or it is computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else value.const_value


def _scales(node: ir.Node) -> np.ndarray:
    """What one level is worth in each column of a product: what follows is a Cast, and a Mul by these. Else nothing."""
    nothing = np.zeros(0, np.float32)
    for op_type in ("Cast", "Mul"):
        nodes = [use.node for use in node.outputs[0].uses()]
        if len(nodes) != 1 or nodes[0].op_type != op_type:
            return nothing
        [node] = nodes
    scales = _constant(node, 1)
    return nothing if scales is None else scales.numpy()


def _largest_fault(levels: np.ndarray) -> int:
    """How far onnxruntime's products with levels (K, M) are from the exact ones, on rows of 0 and 255."""
    random = np.random.default_rng(0)
    rows = random.choice(np.array([0, 255], np.uint8), (EXTREME_ROWS, levels.shape[0]))
    # Neighbours of one sign add up most.
    rows[0] = 255
    exact = (rows.astype(np.float64) - ROW_ZERO) @ levels.astype(np.float64)
    session = open_session(_product(levels))
    largest = 0
    # One row may have another kernel.
    for part in (slice(None), slice(1)):
        [answer] = session.run(None, {"rows": rows[part]})
        largest = max(largest, int(np.abs(answer - exact[part]).max(initial=0)))
    return largest


def _product(levels: np.ndarray) -> OnnxBytes:
    """A file with one MatMulInteger, as those of files in eight bits."""
    constants = {
        "levels": levels,
        "row_zero": np.array(ROW_ZERO, np.uint8),
        "zero": np.array(0, np.int8),
    }
    node = helper.make_node("MatMulInteger", ["rows", *constants], ["sums"])
    rows, columns = levels.shape
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("rows", onnx.TensorProto.UINT8, ["N", rows])],
        [helper.make_tensor_value_info("sums", onnx.TensorProto.INT32, ["N", columns])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return OnnxBytes("a product of eight bits", model.SerializeToString())
