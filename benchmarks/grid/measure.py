"""Everything that runs a recurrent layer, side by side: `python -m benchmarks.grid.measure`; `--grid full` takes hours.

Every contestant (contestants.py) is compared with torch.nn before it is timed; they take turns in blocks
(deploy_rnn/timing.py), and among them, as if it were one more, the floor (floor.py). The files are written first, and
serve every batch; `--files` keeps them. Then sequences of mixed length (lengths.py). With `--device cuda`: cuDNN in
every precision, and onnxruntime with and without CUDA graphs.
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
    compiled,
    cuda_graph_contestant,
    engine_contestant,
    milliseconds,
    modules,
    onnx_contestant,
    openvino_contestant,
    precisions,
    reduced_overhead,
    torch_contestant,
    traced,
)
from benchmarks.grid.floor import onnx_products, products, rows_apart
from benchmarks.grid.points import GRIDS, Net, Point
from benchmarks.reporting.grid_tables import grid_summary, targets_table
from benchmarks.reporting.machine import publish
from deploy_rnn.export.forms import FORMS
from deploy_rnn.runtime import usable_cores
from deploy_rnn.timing import compare

BLOCK = 0.08
"""Seconds that a block is to last, with at least three calls."""
PAUSE = 0.05
"""Seconds of rest before a block, in which the threads of the contestant before stop spinning."""
OPENVINO_STEPS = 2000
"""Steps, over all layers and directions, above which OpenVINO takes more than a minute to open an unrolled graph."""
Openers = dict[str, Callable[[], Contestant]]
Floors = dict[str, Callable[[], object]]


def cpu_openers(
    point: Point, files: graphs.Found, x: torch.Tensor, threads: int, *, unrolled_by_torch: bool
) -> Openers:
    """Everything but our modules."""
    layer, path = point.net.layer(), partial(graphs.path, files)
    found: Openers = {f"{EAGER}, traced": lambda: traced(layer, x)}
    if unrolled_by_torch:
        found[f"{EAGER}, compiled"] = lambda: compiled(layer, x)
    for name in (*FORMS, STOCK, LEGACY):
        found[named(name)] = lambda name=name: onnx_contestant(path(name), x, threads)  # type: ignore[misc]
    found[f"openvino, {NATIVE}"] = lambda: openvino_contestant(path(NATIVE), x, threads)
    found["openvino, unrolled"] = lambda: openvino_unrolled(point, path("unrolled"), x, threads)
    return found


def openvino_unrolled(point: Point, path: Path, x: torch.Tensor, threads: int) -> Contestant:
    if point.steps * point.net.layers * point.net.directions > OPENVINO_STEPS:
        raise Missing("it takes more than a minute to open")
    return openvino_contestant(path, x, threads)


def cuda_openers(point: Point, files: graphs.Found, x: torch.Tensor) -> Openers:
    path = partial(graphs.path, files)
    layer = point.net.layer("cuda")
    found: Openers = {**precisions(layer, x), "deploy_rnn, reduce-overhead": lambda: reduced_overhead(layer, x)}
    for name in FORMS:
        found[named(name)] = lambda name=name: onnx_contestant(path(name), x)  # type: ignore[misc]
    for name in (NATIVE, "unrolled"):
        found[f"{named(name)}, CUDA graph"] = lambda name=name: cuda_graph_contestant(path(name), x)  # type: ignore[misc]
    return found


def named(graph: str) -> str:
    return f"onnxruntime, {graph}"


def ready(openers: Openers, expected: torch.Tensor) -> tuple[dict[str, Contestant], dict[str, str], dict[str, float]]:
    """Those that are there and right; why the others are not; the difference from `expected` of each.

    Raises:
        AssertionError: one of ours is wrong.
    """
    found: dict[str, Contestant] = {}
    missing: dict[str, str] = {}
    differences: dict[str, float] = {}
    for name, opener in openers.items():
        try:
            contestant = opener()
            differences[name] = float((contestant.output() - expected).abs().max())
        except Exception as error:  # each has its own, and a contestant that fails is a result too
            missing[name] = str(error).strip().partition("\n")[0][:200]
            continue
        if differences[name] < contestant.tolerance:
            found[name] = contestant
            continue
        missing[name] = f"wrong by {differences.pop(name):.1e}"
        if name.startswith("deploy_rnn") or name in map(named, FORMS):
            raise AssertionError(f"{name} is {missing[name]}")
    return found, missing, differences


def measure(point: Point, openers: Openers, floors: Floors, rounds: int) -> dict[str, Any]:
    """Every contestant at one point, in milliseconds, and the products alone."""
    expected = openers[EAGER]().output()
    found, missing, differences = ready(openers, expected)
    times = compare({name: each.run for name, each in found.items()} | floors, **blocks(found[EAGER], rounds))
    measured = {
        name: {"difference": differences[name], **milliseconds(times[name]), **each.costs}
        for name, each in found.items()
    }
    floor = {name: 1e3 * times[name].median for name in floors}
    return {**point.where, "contestants": measured, "missing": missing, "products": floor}


def blocks(contestant: Contestant, rounds: int) -> dict[str, Any]:
    started = time.perf_counter()
    contestant.run()
    calls = int(BLOCK / (time.perf_counter() - started))
    return {"rounds": rounds, "calls": min(max(calls, 3), 15), "warm_up": 1 + (calls > 3), "pause": PAUSE}


def packaged(points: list[Point], *, all: bool) -> set[Net]:
    """Compiling takes half a minute for each net: a quick run does it for the largest of each cell's grid."""
    grid = [point.net for point in points if (point.net.layers, point.net.directions) == (2, 2)]
    largest = {net.cell: net for net in sorted(grid, key=lambda net: net.hidden) if all or net.hidden <= 256}
    return set(grid) if all else set(largest.values())


def exported(points: list[Point], *, all: bool) -> set[Net]:
    """torch.onnx.export takes half a minute for 50 steps; relu's graph is tanh's but for the activation."""
    return {point.net for point in points if all or point.net.cell != "relu"}


def rows(points: list[Point], files: graphs.Files, compile: set[Net], options: argparse.Namespace) -> list[Any]:
    measured, ours, before = [], {}, None
    console = Console(stderr=True)
    for point in track(points, "measuring", console=console):
        if not console.is_terminal:
            console.print(point.where)
        if point.net != before:
            torch._dynamo.reset()
            ours = modules(point.net.layer(options.device), compile=point.net in compile)
            before = point.net
        with TemporaryDirectory() as folder, torch.no_grad():
            openers, floors = contest(point, ours, files, Path(folder), options)
            measured.append(measure(point, openers, floors, rounds=3 if options.grid == "full" else 2))
    return measured


def contest(
    point: Point, ours: dict[str, Any], files: graphs.Files, folder: Path, options: argparse.Namespace
) -> tuple[Openers, Floors]:
    """Who takes part at a point."""
    x, written = point.input(options.device), files[point.net, point.steps]
    openers: Openers = {name: partial(torch_contestant, module, x) for name, module in ours.items()}
    floors: Floors = {"torch": products(ours[EAGER], x)}
    if options.device == "cuda":
        return openers | cuda_openers(point, written, x), floors
    package, bundle = (partial(graphs.path, files[point.net, 0], each) for each in (graphs.PACKAGE, graphs.BUNDLE))
    openers["deploy_rnn, packaged"] = lambda: torch_contestant(torch._inductor.aoti_load_package(str(package())), x)
    openers["deploy_rnn, Engine"] = lambda: engine_contestant(bundle(), x, options.threads)
    floors["onnxruntime"] = onnx_products(point.net.layer(), x, folder / "products.onnx", options.threads)
    if point.batch > 1:
        floors["onnxruntime, rows apart"] = rows_apart(point.net.layer(), x, folder / "parts.onnx", options.threads)
    unroll = options.grid == "full" and point.steps <= 50
    return openers | cpu_openers(point, written, x, options.threads, unrolled_by_torch=unroll), floors


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--grid", choices=list(GRIDS), default="quick", help="full has every point and contestant")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--files", type=Path, help="folder that keeps the files that are written")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each contestant")
    parser.add_argument("--points", nargs="+", metavar="CELL,H,T,B", help="these points, two layers in two directions")
    parser.add_argument("--no-compile", action="store_true", help="without contestants that are compiled")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Point]:
    if not options.points:
        return GRIDS[options.grid]()
    parts = [text.split(",") for text in options.points]
    return [Point(Net(cell, int(hidden)), int(steps), int(batch)) for cell, hidden, steps, batch in parts]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False
    points = sorted(chosen(options), key=lambda point: point.net.key)
    compile = set() if options.no_compile else packaged(points, all=options.grid == "full")
    started, load = time.perf_counter(), os.getloadavg()
    if options.files:
        options.files.mkdir(parents=True, exist_ok=True)
    with nullcontext(options.files) if options.files else TemporaryDirectory() as folder:
        on_cuda = options.device == "cuda"
        files = graphs.write(
            points,
            Path(folder),
            options.threads,
            packaged=set() if on_cuda else compile,
            exported=set() if on_cuda else exported(points, all=options.grid == "full"),
            bundled=not on_cuda,
        )
        wrote = time.perf_counter() - started
        measured = rows(points, files, compile, options)
    mixed = [] if options.points or on_cuda else lengths.rows(options.threads, full=options.grid == "full")
    result = {
        "benchmark": "grid",
        "device": options.device,
        "settings": {
            "grid": options.grid,
            "threads": options.threads,
            "pause": PAUSE,
            "load average before": load,
        },
        "seconds": {"writing files": wrote, "all": time.perf_counter() - started},
        "rows": measured,
        "lengths": mixed,
    }
    result = publish(result, options.output)
    print(grid_summary(result) + "\n\n" + targets_table(result))


if __name__ == "__main__":
    main()
