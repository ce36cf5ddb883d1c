"""Every way to run a layer on a GPU, in every precision: `python -m benchmarks.studies.cuda_ways`.

Two bidirectional layers with I = H. H lies on both sides of the sizes up to which cuDNN keeps the recurrent weights of
a layer in registers. The contestants are cuDNN as torch.nn calls it and in a compiled graph, the loop over the steps
with its launches recorded once, the same compiled ahead of time, and files in onnxruntime. Each is compared with
torch.nn before it is timed. The JSON is written after each layer, so that a run that is stopped leaves what it has.

`--device cpu` runs all of it without a GPU, to see that it works: its times say nothing about one.
"""

import argparse
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch._inductor
from rich.progress import track
from torch import Tensor, nn

import deploy_rnn
from benchmarks.grid import graphs
from benchmarks.grid.contestants import (
    EAGER,
    Contestant,
    Missing,
    contestant_row,
    cuda_graph_contestant,
    onnx_contestant,
    reduced_overhead_contestant,
    torch_contestant,
)
from benchmarks.grid.measure import Openers, blocks, open_all
from benchmarks.grid.points import Net, Point
from benchmarks.reporting.cuda_tables import ways_table
from benchmarks.reporting.machine import publish
from deploy_rnn.inductor import loop_options
from deploy_rnn.timing import compare

CELLS = ["tanh", "GRU", "LSTM"]
HIDDEN = [256, 384, 512, 768, 1024]
DTYPES = ["float32", "float16", "bfloat16"]
BATCH = [1, 32]
STEPS = 50
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""The largest difference from torch.nn in the same dtype that counts as right."""


def measure(point: Point, layer: nn.RNNBase, files: graphs.Files, folder: Path) -> dict[str, Any]:
    """Every contestant at one point, in milliseconds; `folder` takes what is compiled ahead of time."""
    parameter = next(layer.parameters())
    x = point.input(str(parameter.device)).to(parameter.dtype)
    openers = all_ways(layer, x, files, folder)
    contestants, missing, differences = open_all(openers, openers[EAGER]().output())
    runs = {name: contestant.run for name, contestant in contestants.items()}
    timings = compare(runs, **blocks(contestants[EAGER], rounds=3))
    rows = {
        name: contestant_row(contestant, differences[name], timings[name])
        for name, contestant in contestants.items()
    }
    dtype = dtype_name(parameter.dtype)
    return {**point.sizes, "dtype": dtype, "contestants": rows, "missing": missing}


def all_ways(layer: nn.RNNBase, x: Tensor, files: graphs.Files, folder: Path) -> Openers:
    tolerance = TOLERANCES[dtype_name(x.dtype)]
    library = deploy_rnn.compile(layer, recurrence="library")
    return {
        EAGER: partial(torch_contestant, layer, x, tolerance),
        "deploy_rnn, library": partial(torch_contestant, library, x, tolerance),
        "deploy_rnn, scan, reduce-overhead": partial(
            reduced_overhead_contestant, layer, x, tolerance
        ),
        "deploy_rnn, packaged": partial(packaged_contestant, layer, x, folder, tolerance),
        "onnxruntime, native": partial(open_file, files, "native", x),
        "onnxruntime, unrolled": partial(open_file, files, "unrolled", x),
        "onnxruntime, unrolled, CUDA graph": partial(
            open_file, files, "unrolled", x, as_cuda_graph=True
        ),
    }


def packaged_contestant(layer: nn.RNNBase, x: Tensor, folder: Path, tolerance: float) -> Contestant:
    """What `package` would write for a GPU: it writes files for a CPU."""
    program = torch.export.export(deploy_rnn.convert(layer), (x,))
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(folder / "layer.pt2"), inductor_configs=loop_options()
    )
    return torch_contestant(torch._inductor.aoti_load_package(path), x, tolerance)


def open_file(
    files: graphs.Files, form: str, x: Tensor, *, as_cuda_graph: bool = False
) -> Contestant:
    if x.dtype is not torch.float32:
        raise Missing("the file is in float32")
    path = graphs.find_file(files, form)
    return cuda_graph_contestant(path, x) if as_cuda_graph else onnx_contestant(path, x)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure_layers(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The rows of one layer after the other, each in one dtype at every batch."""
    layers = list(itertools.product(options.dtypes, options.cells, options.hidden))
    for dtype, cell, hidden in track(layers, "measuring"):
        net = Net(cell, hidden)
        layer = net.layer(options.device).to(getattr(torch, dtype))
        layer.flatten_parameters()  # cuDNN would copy all weights at every call
        with TemporaryDirectory() as name, torch.no_grad():
            folder = Path(name)
            files = graphs.write_forms(net, options.steps, folder)
            rows = []
            for batch in options.batch:
                torch._dynamo.reset()
                rows.append(measure(Point(net, options.steps, batch), layer, files, folder))
        yield rows


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--cells", nargs="+", default=CELLS, choices=CELLS)
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help=f"default {HIDDEN}")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCH, help=f"default {BATCH}")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default {STEPS}")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    rows: list[dict[str, Any]] = []
    measured_on = {"benchmark": "cuda_ways", "device": options.device}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for layer_rows in measure_layers(options):
            rows += layer_rows
            result = publish({**measured_on, "rows": rows}, options.output)
    print(ways_table(result))


if __name__ == "__main__":
    main()
