"""What else computes recurrent layers in eight bits: `python -m benchmarks.studies.int8_contestants`, ten minutes.

One layer with I = H and torch's own random weights, 50 steps, one thread. Next to our files: onnxruntime's operator
`DynamicQuantizeLSTM`, with weights of 8 and 7 bits; and OpenVINO with NNCF, if both are installed:

    pip install --no-deps nncf==3.4.0 openvino==2026.4.1 openvino-telemetry
    pip install scipy scikit-learn tabulate networkx==3.6.1 pydot==4.0.1

NNCF compresses the weights of our float32 file in form "unrolled" ("NNCF, weights"), or quantizes it with five batches
of random inputs for calibration ("NNCF, quantized"). It leaves the weights of form "native" in float32: `kept` has the
bytes of constants before and after.

Times are processor time, since other programs may run: the least of several rounds in which contestants take turns. An
error is the largest difference of an output from the layer in float64, on normal inputs; `alone`, how far the first row
is moved by the rows that it is run with.
"""

import argparse
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from rich.progress import track
from torch import nn

from benchmarks.reporting.machine import publish, versions
from benchmarks.reporting.precision_tables import contestants_table
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.saving import save
from deploy_rnn.runtime import open_session

FAMILIES: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
HIDDEN = [256, 512, 1024]
BATCHES = [1, 32]
STEPS = 50
ROUNDS = 4
SECONDS = 0.3
"""A contestant's turn ends after so much processor time, or one call."""

TORCH_TO_ONNX = [0, 3, 1, 2]
"""The gates of an LSTM: i, f, g, o of PyTorch as i, o, f, c."""

Run = Callable[[np.ndarray], np.ndarray]
"""input (T, B, I) -> output (T, B, H)"""


def our_files(layer: nn.RNNBase, folder: Path) -> dict[str, Path]:
    x = torch.randn(STEPS, 2, layer.input_size)
    options = ExportOptions(dynamic_shapes={"input": {1: "B"}}, max_nodes=100_000)
    captured = CapturedModel.of(layer, (x,), None, options, dynamic_time=False)
    files = {}
    for precision, form in [
        ("float32", "native"),
        ("float32", "unrolled"),
        ("int8", "scan"),
        ("int8", "unrolled"),
    ]:
        name = f"{precision}, {form}"
        files[name] = folder / f"{name}.onnx"
        written = replace(captured, precision=precision).written(form, max_nodes=100_000)
        save(written, files[name])
    return files


def dynamic_lstm(layer: nn.LSTM, folder: Path, *, levels: int, by_column: bool) -> Path:
    """A file with one `DynamicQuantizeLSTM`; weights from -levels to levels, a scale for each column or for all."""
    constants = {}
    for name, weight in (("W", layer.weight_ih_l0), ("R", layer.weight_hh_l0)):
        ordered = _ordered(weight).T  # (I, 4*H)
        largest = np.abs(ordered).max(axis=0 if by_column else None, keepdims=True)
        scales = (largest / levels).reshape(1, -1).astype(np.float32)
        scales = scales if by_column else scales.reshape(1)
        constants[name] = np.round(ordered / scales).astype(np.int8)[None]
        constants[f"{name}_scale"] = scales
        constants[f"{name}_zero"] = np.zeros_like(scales, np.int8)
    constants["B"] = np.concatenate([_ordered(layer.bias_ih_l0), _ordered(layer.bias_hh_l0)])[None]
    constants["axis"] = np.array([1])
    inputs = ["input", "W", "R", "B", "", "", "", "", "W_scale", "W_zero", "R_scale", "R_zero"]
    nodes = [
        helper.make_node(
            "DynamicQuantizeLSTM",
            inputs,
            ["Y"],
            domain="com.microsoft",
            hidden_size=layer.hidden_size,
        ),
        helper.make_node("Squeeze", ["Y", "axis"], ["output"]),
    ]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "lstm",
        [helper.make_tensor_value_info("input", float32, ["T", "B", layer.input_size])],
        [helper.make_tensor_value_info("output", float32, ["T", "B", layer.hidden_size])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    path = folder / f"{levels}-{by_column}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def _ordered(weight: Any) -> np.ndarray:
    gates = weight.detach().numpy().reshape(4, -1, *weight.shape[1:])
    return np.asarray(gates[TORCH_TO_ONNX]).reshape(weight.shape)


def in_onnxruntime(path: Path) -> Run:
    session = open_session(path, threads=1)

    def run(x: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["output"], {"input": x})[0])

    return run


def in_openvino(files: Mapping[str, Path], width: int) -> tuple[dict[str, Run], dict[str, Any]]:
    """The contestants, and how many bytes of constants form "native" has before and after NNCF."""
    # Not everybody has them.
    nncf = importlib.import_module("nncf")
    openvino = importlib.import_module("openvino")

    core = openvino.Core()

    def compiled(model: Any) -> Run:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        request = core.compile_model(model, "CPU", settings)
        return lambda x: np.asarray(request({"input": x})["output"])

    def constant_bytes(model: Any) -> int:
        constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
        return int(sum(op.get_byte_size() for op in constants))

    native = core.read_model(files["float32, native"])
    unrolled = core.read_model(files["float32, unrolled"])
    random = np.random.default_rng(1)
    batches = [{"input": random.standard_normal((STEPS, 2, width), np.float32)} for _ in range(5)]
    mode = nncf.CompressWeightsMode.INT8_SYM
    runs = {
        "OpenVINO, float32": compiled(native.clone()),
        "NNCF, weights": compiled(nncf.compress_weights(unrolled.clone(), mode=mode)),
        "NNCF, quantized": compiled(
            nncf.quantize(unrolled.clone(), nncf.Dataset(batches), subset_size=len(batches))
        ),
    }
    before = constant_bytes(native)
    after = constant_bytes(nncf.compress_weights(native.clone(), mode=mode))
    return runs, {"before": before, "after": after}


def milliseconds(runs: Mapping[str, Run], x: np.ndarray) -> dict[str, float]:
    """Processor time of one call."""
    least = dict.fromkeys(runs, np.inf)
    for run in runs.values():
        run(x)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            begin = time.process_time()
            calls = 0
            while not calls or time.process_time() - begin < SECONDS:
                run(x)
                calls += 1
            least[name] = min(least[name], (time.process_time() - begin) / calls)
    return {name: 1e3 * float(seconds) for name, seconds in least.items()}


def measure_layer(family: str, hidden: int, *, has_nncf: bool) -> Iterator[dict[str, Any]]:
    """A row for each batch."""
    torch.manual_seed(0)
    layer = FAMILIES[family](hidden, hidden).eval()
    with TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        files = our_files(layer, folder)
        if isinstance(layer, nn.LSTM):
            make = partial(dynamic_lstm, layer, folder)
            files["operator, 8 bits"] = make(levels=127, by_column=False)
            files["operator, 8 bits a column"] = make(levels=127, by_column=True)
            files["operator, 7 bits a column"] = make(levels=63, by_column=True)
        runs = {contestant: in_onnxruntime(path) for contestant, path in files.items()}
        kept = None
        if has_nncf:
            others, kept = in_openvino(files, hidden)
            runs |= others
        exact_layer = FAMILIES[family](hidden, hidden).double()
        exact_layer.load_state_dict(layer.state_dict())
        for batch in BATCHES:
            x = torch.randn(STEPS, batch, hidden)
            exact = exact_layer(x.double())[0].numpy()
            times = milliseconds(runs, x.numpy())
            contestants = {}
            for contestant, run in runs.items():
                output = run(x.numpy())
                alone = run(x[:, :1].numpy())
                contestants[contestant] = {
                    "milliseconds": times[contestant],
                    "error": float(np.abs(output - exact).max()),
                    "alone": float(np.abs(output[:, :1] - alone).max()),
                }
            row = {
                "family": family,
                "H": hidden,
                "B": batch,
                "T": STEPS,
                "contestants": contestants,
            }
            yield row | ({"kept": kept} if kept else {})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help=f"default {HIDDEN}")
    options = parser.parse_args()
    installed = versions(["nncf", "openvino"])
    has_nncf = "absent" not in installed.values()
    rows: list[dict[str, Any]] = []
    layers: Sequence[tuple[str, int]] = [
        (family, hidden) for family in options.families for hidden in options.hidden
    ]
    # What is stopped leaves the layers that it has measured.
    for family, hidden in track(layers, "measuring"):
        rows += measure_layer(family, hidden, has_nncf=has_nncf)
        result = {"benchmark": "int8_contestants", "nncf": installed["nncf"], "rows": rows}
        published = publish(result, options.output)
    print(contestants_table(published))


if __name__ == "__main__":
    main()
