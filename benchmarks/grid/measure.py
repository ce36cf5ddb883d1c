"""Everything that runs a recurrent layer, side by side: `python -m benchmarks.grid.measure`; `--grid full` takes hours.

Every contestant (contestants.py) is compared with torch.nn before it is timed. They take turns in blocks
(deploy_rnn/timing.py), and the products alone (products.py) take turns with them. The files are written first, and
serve every batch; `--files` keeps them. Then come sequences of mixed length (lengths.py). With `--device cuda`: cuDNN
in every precision, and onnxruntime with and without CUDA graphs.
"""

import argparse
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch._inductor
from rich.console import Console
from rich.progress import track

from benchmarks.grid import graphs, lengths
from benchmarks.grid.contestants import (
    EAGER,
    LEGACY,
    NATIVE,
    STOCK,
    Contestant,
    Missing,
    compiled_contestant,
    contestant_row,
    cuda_graph_contestant,
    cudnn_precisions,
    engine_contestant,
    onnx_contestant,
    openvino_contestant,
    reduced_overhead_contestant,
    torch_contestant,
    torch_modules,
    traced_contestant,
)
from benchmarks.grid.points import GRIDS, Net, Point
from benchmarks.grid.products import onnx_products, onnx_products_by_core, torch_products
from benchmarks.reporting.grid_tables import grid_summary, targets_table
from benchmarks.reporting.machine import publish
from deploy_rnn.export.forms import FORMS
from deploy_rnn.runtime import usable_cores
from deploy_rnn.timing import compare

BLOCK = 0.08
"""Seconds that a block should last, with at least three calls."""
PAUSE = 0.05
"""Seconds of rest before a block, in which the threads of the previous contestant stop spinning."""
OPENVINO_STEPS = 2000
"""Steps, over all layers and directions, above which OpenVINO takes more than a minute to open an unrolled graph."""

Openers = dict[str, Callable[[], Contestant]]
"""Name -> makes the contestant, or raises why it is not available."""
Products = dict[str, Callable[[], object]]
"""Name -> runs the matrix products alone."""


def point_openers(
    point: Point, modules: dict[str, Any], files: graphs.FilesByTrace, options: argparse.Namespace
) -> Openers:
    """Everything that takes part at a point; `modules` are those that run in PyTorch."""
    x = point.input(options.device)
    openers: Openers = {
        name: partial(torch_contestant, module, x) for name, module in modules.items()
    }
    point_files = files[point.net, point.steps]
    if options.device == "cuda":
        return openers | cuda_openers(point, point_files, x)

    net_files = files[point.net, 0]
    openers["deploy_rnn, packaged"] = partial(open_package, net_files, x)
    openers["deploy_rnn, Engine"] = partial(open_engine, net_files, x, options.threads)
    # torch.compile unrolls the loop of torch.nn, which takes too long for the smaller grids.
    compiled = options.grid == "full" and point.steps <= 50
    return openers | cpu_openers(point, point_files, x, options.threads, compiled=compiled)


def cpu_openers(
    point: Point, files: graphs.Files, x: torch.Tensor, threads: int, *, compiled: bool
) -> Openers:
    """What runs a layer of torch.nn, or a file, on the CPU."""
    layer = point.net.layer()
    openers: Openers = {f"{EAGER}, traced": partial(traced_contestant, layer, x)}
    if compiled:
        openers[f"{EAGER}, compiled"] = partial(compiled_contestant, layer, x)
    for graph in (*FORMS, STOCK, LEGACY):
        openers[session_name(graph)] = partial(open_graph, files, graph, x, threads)
    openers[f"openvino, {NATIVE}"] = partial(open_in_openvino, files, NATIVE, x, threads)
    openers["openvino, unrolled"] = partial(open_unrolled_in_openvino, point, files, x, threads)
    return openers


def cuda_openers(point: Point, files: graphs.Files, x: torch.Tensor) -> Openers:
    """What runs a layer, or a file, on the GPU."""
    layer = point.net.layer("cuda")
    openers: Openers = cudnn_precisions(layer, x)
    openers["deploy_rnn, reduce-overhead"] = partial(reduced_overhead_contestant, layer, x)
    for form in FORMS:
        openers[session_name(form)] = partial(open_graph, files, form, x)
    for form in (NATIVE, "unrolled"):
        openers[f"{session_name(form)}, CUDA graph"] = partial(open_as_cuda_graph, files, form, x)
    return openers


def session_name(graph: str) -> str:
    return f"onnxruntime, {graph}"


def open_package(files: graphs.Files, x: torch.Tensor) -> Contestant:
    package = graphs.find_file(files, graphs.PACKAGE)
    return torch_contestant(torch._inductor.aoti_load_package(str(package)), x)


def open_engine(files: graphs.Files, x: torch.Tensor, threads: int) -> Contestant:
    return engine_contestant(graphs.find_file(files, graphs.BUNDLE), x, threads)


def open_graph(
    files: graphs.Files, graph: str, x: torch.Tensor, threads: int | None = None
) -> Contestant:
    return onnx_contestant(graphs.find_file(files, graph), x, threads)


def open_as_cuda_graph(files: graphs.Files, graph: str, x: torch.Tensor) -> Contestant:
    return cuda_graph_contestant(graphs.find_file(files, graph), x)


def open_in_openvino(files: graphs.Files, graph: str, x: torch.Tensor, threads: int) -> Contestant:
    return openvino_contestant(graphs.find_file(files, graph), x, threads)


def open_unrolled_in_openvino(
    point: Point, files: graphs.Files, x: torch.Tensor, threads: int
) -> Contestant:
    if point.steps * point.net.layers * point.net.directions > OPENVINO_STEPS:
        raise Missing("it takes more than a minute to open")
    return open_in_openvino(files, "unrolled", x, threads)


def point_products(point: Point, folder: Path, options: argparse.Namespace) -> Products:
    """The matrix products of a point in each library; `folder` takes the graphs."""
    x = point.input(options.device)
    layer = point.net.layer(options.device)
    products_alone: Products = {"torch": torch_products(layer, x)}
    if options.device == "cpu":
        products_alone["onnxruntime"] = onnx_products(
            layer, x, folder / "products.onnx", options.threads
        )
        if point.batch > 1:
            path = folder / "products-by-core.onnx"
            products_alone["onnxruntime, rows apart"] = onnx_products_by_core(
                layer, x, path, options.threads
            )
    return products_alone


def open_all(
    openers: Openers, expected: torch.Tensor
) -> tuple[dict[str, Contestant], dict[str, str], dict[str, float]]:
    """Make every contestant and compare it with `expected`.

    Returns: the contestants that are available and right; why each of the others is not; and how far each of the
    former is from `expected`.

    Raises:
        AssertionError: one of ours is wrong.
    """
    contestants: dict[str, Contestant] = {}
    missing: dict[str, str] = {}
    differences: dict[str, float] = {}
    for name, opener in openers.items():
        try:
            contestant = opener()
            difference = float((contestant.output() - expected).abs().max())
        # Every runtime has its own exceptions, and a contestant that fails is a result too.
        except Exception as error:
            missing[name] = str(error).strip().partition("\n")[0][:200]
            continue
        if difference < contestant.tolerance:
            contestants[name] = contestant
            differences[name] = difference
        elif is_ours(name):
            raise AssertionError(f"{name} is wrong by {difference:.1e}")
        else:
            missing[name] = f"wrong by {difference:.1e}"
    return contestants, missing, differences


def is_ours(name: str) -> bool:
    return name.startswith("deploy_rnn") or name in map(session_name, FORMS)


def measure(
    point: Point, openers: Openers, products_alone: Products, rounds: int
) -> dict[str, Any]:
    """Every contestant at one point, and the products alone, in milliseconds."""
    expected = openers[EAGER]().output()
    contestants, missing, differences = open_all(openers, expected)
    runs = {name: contestant.run for name, contestant in contestants.items()}
    timings = compare(runs | products_alone, **blocks(contestants[EAGER], rounds))
    rows = {
        name: contestant_row(contestant, differences[name], timings[name])
        for name, contestant in contestants.items()
    }
    products = {name: 1e3 * timings[name].median for name in products_alone}
    return {**point.sizes, "contestants": rows, "missing": missing, "products": products}


def blocks(contestant: Contestant, rounds: int) -> dict[str, Any]:
    """How long and how often everything runs at a point, by the time of one call."""
    started = time.perf_counter()
    contestant.run()
    calls = int(BLOCK / (time.perf_counter() - started))
    warm_up = 2 if calls > 3 else 1
    return {"rounds": rounds, "calls": min(max(calls, 3), 15), "warm_up": warm_up, "pause": PAUSE}


def nets_to_package(points: list[Point], *, everything: bool) -> set[Net]:
    """Nets that are compiled. That takes half a minute each: a small run does it for the largest of each cell."""
    nets = {point.net for point in points if (point.net.layers, point.net.directions) == (2, 2)}
    if everything:
        return nets
    largest: dict[str, Net] = {}
    for net in sorted(nets, key=lambda net: net.hidden):
        if net.hidden <= 256:
            largest[net.cell] = net
    return set(largest.values())


def nets_to_export(points: list[Point], *, everything: bool) -> set[Net]:
    """Nets that torch.onnx.export exports. That takes half a minute for 50 steps.

    A small run leaves out relu, whose graph is that of tanh with another activation.
    """
    return {point.net for point in points if everything or point.net.cell != "relu"}


def write_files(
    points: list[Point], folder: Path, to_package: set[Net], options: argparse.Namespace
) -> graphs.FilesByTrace:
    if options.device == "cuda":
        return graphs.write_files(
            points, folder, options.threads, packaged=set(), exported=set(), bundled=False
        )
    to_export = nets_to_export(points, everything=options.grid == "full")
    return graphs.write_files(
        points, folder, options.threads, packaged=to_package, exported=to_export, bundled=True
    )


def measure_points(
    points: list[Point],
    files: graphs.FilesByTrace,
    to_compile: set[Net],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Every point; those of one net must follow each other, since they share its compiled modules."""
    rounds = 3 if options.grid == "full" else 2
    rows: list[dict[str, Any]] = []
    modules: dict[str, Any] = {}
    net = None
    console = Console(stderr=True)
    for point in track(points, "measuring", console=console):
        if not console.is_terminal:
            console.print(point.sizes)
        if point.net != net:
            net = point.net
            torch._dynamo.reset()
            modules = torch_modules(net.layer(options.device), compile=net in to_compile)
        with TemporaryDirectory() as folder, torch.no_grad():
            openers = point_openers(point, modules, files, options)
            products_alone = point_products(point, Path(folder), options)
            rows.append(measure(point, openers, products_alone, rounds))
    return rows


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--grid", choices=list(GRIDS), default="quick", help="full has every point and contestant"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--files", type=Path, help="folder that keeps the files that are written")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each contestant")
    parser.add_argument(
        "--points",
        nargs="+",
        metavar="CELL,H,T,B",
        help="these points, two layers in two directions",
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="without contestants that are compiled"
    )
    return parser.parse_args()


def choose_points(options: argparse.Namespace) -> list[Point]:
    if not options.points:
        return GRIDS[options.grid]()
    points = []
    for text in options.points:
        cell, hidden, steps, batch = text.split(",")
        points.append(Point(Net(cell, int(hidden)), int(steps), int(batch)))
    return points


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False
    points = sorted(choose_points(options), key=lambda point: point.net.key)
    to_compile: set[Net] = set()
    if not options.no_compile:
        to_compile = nets_to_package(points, everything=options.grid == "full")

    load_average = os.getloadavg()
    started = time.perf_counter()
    if options.files:
        options.files.mkdir(parents=True, exist_ok=True)
    with nullcontext(options.files) if options.files else TemporaryDirectory() as folder:
        files = write_files(points, Path(folder), to_compile, options)
        seconds_to_write = time.perf_counter() - started
        rows = measure_points(points, files, to_compile, options)
    mixed_lengths = []
    if options.device == "cpu" and not options.points:
        mixed_lengths = lengths.measure_all(options.threads, full=options.grid == "full")

    result = {
        "benchmark": "grid",
        "device": options.device,
        "settings": {
            "grid": options.grid,
            "threads": options.threads,
            "pause": PAUSE,
            "load average before": load_average,
        },
        "seconds": {"writing files": seconds_to_write, "all": time.perf_counter() - started},
        "rows": rows,
        "lengths": mixed_lengths,
    }
    result = publish(result, options.output)
    print(grid_summary(result) + "\n\n" + targets_table(result))


if __name__ == "__main__":
    main()
