"""Layers in float32, float16 and int8: `python -m benchmarks.studies.precision`, about eleven minutes.

One layer with I = H and torch's own random weights, inference on the CPU. For 50 steps in form "unrolled", for 200 in
form "scan". Beside ours: torch.nn, PyTorch's dynamic quantisation, which leaves nn.RNN as it is, and onnxruntime's
`quantize_dynamic` of our float32 file; of a loop it changes only what is before it, so it has no column there.
Contestants take turns (see deploy_rnn/timing.py). An error is the largest difference of an output from the layer in
float64, on normal inputs; memory is what a process grows by when it opens a file and runs it once.

Then the kernels that int8 could have (`kernels`), and how many characters the highlighter gets right (`highlighter`).
"""

import argparse
import copy
import itertools
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import quantize_dynamic
from rich.progress import track
from torch import Tensor, nn

from benchmarks import ROOT
from benchmarks.reporting.machine import publish
from benchmarks.reporting.precision_tables import precision_sections
from benchmarks.studies.highlighter import highlighter_accuracy
from benchmarks.studies.int8_kernels import measure_kernels
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.saving import save
from deploy_rnn.runtime import open_session
from deploy_rnn.timing import compare

FAMILIES: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
HIDDEN = [128, 256, 512, 1024]
RUNS = [(1, None), (1, 1), (32, None)]
"""B, and threads: None for all cores. On one thread, as a server runs a request."""

STEPS = {"unrolled": 50, "scan": 200}
"""Form -> T."""

STATE = "int8, state only"
"""With `int8_products="state"`."""

PRECISIONS = {
    "unrolled": ["float32", "int8", STATE],
    "scan": ["float32", "int8", STATE, "float16"],
}
"""Form -> what is measured of ours; float16 computes as float32 does, in any form."""

BLOCKS = {"rounds": 2, "calls": 6, "warm_up": 1, "pause": 0.03, "block_seconds": 0.15}

OPEN_AND_RUN = """
import sys, numpy as np, onnxruntime
def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
before = held()
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {"input": np.zeros((int(sys.argv[2]), 1, int(sys.argv[3])), np.float32)})
print(held() - before)
"""


def write_files(layer: nn.RNNBase, form: str, folder: Path) -> dict[str, Path]:
    """A file in each precision; their checks, which take longer than everything else here, are the task of tests."""
    x = torch.randn(STEPS[form], 2, layer.input_size)
    axes = {1: "B"} if form == "unrolled" else {0: "T", 1: "B"}
    options = ExportOptions(dynamic_shapes={"input": axes}, max_nodes=100_000)
    is_dynamic = form != "unrolled"
    files = {}
    captured = None
    for precision in PRECISIONS[form]:
        # The weights of float16 are rounded before they are traced.
        if captured is None or precision == "float16":
            chosen = replace(options, precision=precision)
            captured = CapturedModel.of(layer, (x,), None, chosen, dynamic_time=is_dynamic)
        source = replace(captured, precision=precision)
        if precision == STATE:
            metadata = replace(captured.metadata, int8_products="state")
            source = replace(captured, precision="int8", metadata=metadata)
        files[precision] = folder / f"{form}-{precision}.onnx"
        save(source.written(form, max_nodes=options.max_nodes), files[precision])
    if form == "unrolled":
        files["quantize_dynamic"] = folder / "dynamic.onnx"
        quantize_dynamic(files["float32"], files["quantize_dynamic"])
    return files


def session_run(session: Any, x: Tensor) -> Callable[[], np.ndarray]:
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


def measure_point(
    layer: nn.RNNBase, x: Tensor, sessions: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Each contestant's milliseconds and error."""
    runs = {name: session_run(session, x) for name, session in sessions.items()}
    runs["torch.nn"] = torch_run(layer, x)
    quantized = quantized_by_torch(layer)
    if quantized is not None:
        runs["torch.ao"] = torch_run(quantized, x)
    exact = torch_run(copy.deepcopy(layer).double(), x.double())()
    timings = compare(runs, **BLOCKS)  # type: ignore[arg-type]
    rows: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        error = float(np.abs(run() - exact).max())
        rows[name] = {"milliseconds": 1e3 * timings[name].median, "error": error}
    return rows


def megabytes_held(path: Path, steps: int, width: int) -> float:
    """What a process grows by when it opens a file and runs one row."""
    command = [sys.executable, "-c", OPEN_AND_RUN, str(path), str(steps), str(width)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e3


def measure_layer(family: str, hidden: int, form: str) -> Iterator[dict[str, Any]]:
    """A row for each of RUNS."""
    torch.manual_seed(0)
    layer = FAMILIES[family](hidden, hidden).eval()
    steps = STEPS[form]
    with TemporaryDirectory() as folder:
        files = write_files(layer, form, Path(folder))
        kilobytes = {name: path.stat().st_size / 1e3 for name, path in files.items()}
        megabytes = {}
        if form == "scan":
            megabytes = {name: megabytes_held(path, steps, hidden) for name, path in files.items()}
        for batch, threads in RUNS:
            x = torch.randn(steps, batch, hidden)
            yield {
                "family": family, "H": hidden, "B": batch, "T": steps, "form": form, "threads": threads,
                "contestants": measure_on_threads(layer, x, files, threads),
                "kilobytes": kilobytes, "megabytes": megabytes,
            }  # fmt: skip


def measure_on_threads(
    layer: nn.RNNBase, x: Tensor, files: Mapping[str, Path], threads: int | None
) -> dict[str, dict[str, float]]:
    """`measure_point` on so many threads; None for as many as there are cores."""
    sessions = {name: open_session(path, threads=threads) for name, path in files.items()}
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        return measure_point(layer, x, sessions)
    finally:
        torch.set_num_threads(threads_before)


def measure_all(families: Sequence[str], sizes: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
    """All rows so far, after each layer; the largest layers come last."""
    rows: list[dict[str, Any]] = []
    layers = list(itertools.product(sorted(sizes), STEPS, families))
    for hidden, form, family in track(layers, "measuring"):
        rows += measure_layer(family, hidden, form)
        yield rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help=f"default {HIDDEN}")
    parser.add_argument(
        "--files", type=int, default=20, help="of the highlighter's 70 held-out files (default 20)"
    )
    options = parser.parse_args()
    # `quantize_dynamic` advises to prepare the file first, which a file with fixed shapes needs not.
    logging.disable(logging.WARNING)
    result: dict[str, Any] = {
        "benchmark": "precision",
        "kernels": measure_kernels(options.hidden),
        "highlighter": highlighter_accuracy(options.files),
    }
    # What is stopped leaves the layers that it has measured.
    for rows in measure_all(options.families, options.hidden):
        published = publish({**result, "rows": rows}, options.output)
    for section in precision_sections(published).values():
        print(section)


if __name__ == "__main__":
    main()
