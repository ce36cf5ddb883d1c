"""Recurrent layers in eight bits: `python -m benchmarks.studies.precision`.

One layer with I = H and torch's own random weights, inference on the CPU, in form "unrolled". Beside ours in float32
and int8: onnxruntime's `quantize_dynamic` of our float32 file, and PyTorch's dynamic quantisation, which leaves nn.RNN
as it is. Contestants take turns (see deploy_rnn/timing.py). An error is the largest difference of an output from the
layer in float64, on normal inputs.
"""

import argparse
import copy
import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import quantize_dynamic
from rich.progress import track
from torch import Tensor, nn

from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import precision_table
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.saving import save
from deploy_rnn.runtime import open_session
from deploy_rnn.timing import compare

FAMILIES: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
HIDDEN = [128, 256, 512, 1024]
POINTS = [(1, 50), (1, 200), (32, 50)]
"""B and T."""

FLOAT32 = "float32"
BLOCKS = {"rounds": 3, "calls": 8, "warm_up": 1, "pause": 0.05, "block_seconds": 0.25}


def write(layer: nn.RNNBase, x: Tensor, path: Path, precision: str) -> Path:
    """A file of the layer; its check, which takes longer than everything else here, is the task of tests."""
    options = ExportOptions(precision=precision, dynamic_shapes={}, max_nodes=100_000)
    captured = CapturedModel.of(layer, (x,), None, options, dynamic_time=False)
    save(captured.written("unrolled", max_nodes=options.max_nodes), path)
    return path


def session_run(path: Path, x: Tensor) -> Callable[[], np.ndarray]:
    session = open_session(path)
    run = partial(session.run, ["output"], {"input": x.numpy()})
    return lambda: np.asarray(run()[0])


def torch_run(layer: Callable[..., Any], x: Tensor) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        with torch.no_grad():
            output: np.ndarray = layer(x)[0].numpy()
            return output

    return run


def quantized_by_torch(layer: nn.RNNBase) -> nn.Module | None:
    """None for a layer that PyTorch leaves as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and says so
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(copy.deepcopy(layer)), {type(layer)}, dtype=torch.qint8
        )
    quantized: nn.Module = model[0]
    return None if type(quantized) is type(layer) else quantized


def measure(layer: nn.RNNBase, x: Tensor, folder: Path) -> dict[str, dict[str, float]]:
    """Each contestant's milliseconds, error, and kilobytes of its file."""
    files = {name: write(layer, x, folder / f"{name}.onnx", name) for name in (FLOAT32, "int8")}
    files["quantize_dynamic"] = folder / "dynamic.onnx"
    quantize_dynamic(files[FLOAT32], files["quantize_dynamic"])
    runs = {name: session_run(path, x) for name, path in files.items()}
    runs["torch.nn"] = torch_run(layer, x)
    quantized = quantized_by_torch(layer)
    if quantized is not None:
        runs["torch.ao"] = torch_run(quantized, x)
    exact = torch_run(copy.deepcopy(layer).double(), x.double())()
    timings = compare(runs, **BLOCKS)  # type: ignore[arg-type]
    rows: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        rows[name] = {
            "milliseconds": 1e3 * timings[name].median,
            "error": float(np.abs(run() - exact).max()),
        }
        if name in files:
            rows[name]["kilobytes"] = files[name].stat().st_size / 1e3
    return rows


def measure_all(families: Sequence[str], sizes: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    layers = list(itertools.product(families, sizes))
    for family, hidden in track(layers, "measuring"):
        torch.manual_seed(0)
        layer = FAMILIES[family](hidden, hidden).eval()
        for batch, steps in POINTS:
            x = torch.randn(steps, batch, hidden)
            with TemporaryDirectory() as folder:
                contestants = measure(layer, x, Path(folder))
            point = {"family": family, "H": hidden, "B": batch, "T": steps}
            rows.append({**point, "contestants": contestants})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help=f"default {HIDDEN}")
    options = parser.parse_args()
    # `quantize_dynamic` advises to prepare the file first, which a file with fixed shapes needs not.
    logging.disable(logging.WARNING)
    rows = measure_all(options.families, options.hidden)
    result = publish({"benchmark": "precision", "rows": rows}, options.output)
    print(precision_table(result))


if __name__ == "__main__":
    main()
