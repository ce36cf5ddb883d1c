"""What an export costs, compared with PyTorch's own exporter: `python -m benchmarks.studies.exporters`.

Each export runs in a fresh process, after torch is imported, and is timed from the call to the finished file. Ours
includes the check in onnxruntime; PyTorch's has none. Then the file is opened in onnxruntime, on one core, in another
process. Memory is the largest resident set of the process that exports, and what opening adds to the other process.
After three minutes a contestant is stopped.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from rich.console import Console
from torch import nn

from benchmarks import ROOT
from benchmarks.grid.graphs import stock_export
from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import export_table
from deploy_rnn.runtime import open_session

STEPS = [10, 100, 1000]
FORMS = ["unrolled", "scan", "native"]
STOCK = "torch.onnx.export"
INPUT = 64
LIMIT = 180
"""Seconds after which a contestant is stopped."""


def sizes(steps: list[int], hidden: int, wide: int) -> list[tuple[int, int]]:
    """(T, H): every number of steps, and the middle one again with more hidden units."""
    middle = sorted(steps)[len(steps) // 2]
    points = [*((count, hidden) for count in steps), (middle, wide)]
    return list(dict.fromkeys(points))


def measure_export(exporter: str, steps: int, hidden: int) -> dict[str, Any]:
    """Export a two-layer bidirectional RNN once, and open the file."""
    layer = nn.RNN(INPUT, hidden, 2, bidirectional=True).eval()
    x = torch.randn(steps, 2, INPUT)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rnn.onnx"
        seconds = time_export(exporter, layer, x, path)
        # PyTorch's exporter puts the weights into a second file.
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        nodes = count_nodes(onnx.load(path, load_external_data=False).graph)
        peak = peak_memory()
        opening = json.loads(run_in_process("--open", str(path)))
    weights = sum(weight.numel() * weight.element_size() for weight in layer.parameters())
    return {
        "seconds": seconds,
        "nodes": nodes,
        "bytes": size,
        "weights": weights,
        "peak": peak,
        **opening,
    }


def time_export(exporter: str, layer: nn.RNN, x: torch.Tensor, path: Path) -> float:
    started = time.perf_counter()
    if exporter == STOCK:
        stock_export(layer, x, path)
    else:
        from deploy_rnn.export import export_onnx

        export_onnx(layer, x, path, form=exporter)
    return time.perf_counter() - started


def measure_opening(path: str) -> dict[str, float]:
    """Seconds to open a file in onnxruntime, and the bytes of memory that it holds then."""
    memory_before = resident_memory()
    started = time.perf_counter()
    session = open_session(path, threads=1)
    load = time.perf_counter() - started
    memory = resident_memory() - memory_before
    del session
    return {"load": load, "memory": memory}


def resident_memory() -> int:
    """Bytes of memory of this process; the most that it has had, where the system does not say."""
    pages = Path("/proc/self/statm")
    return (
        int(pages.read_text().split()[1]) * resource.getpagesize()
        if pages.exists()
        else peak_memory()
    )


def peak_memory() -> int:
    """The most bytes of memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_in_process(*arguments: str, limit: int | None = None) -> str:
    """The last line that this module prints in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.studies.exporters", *arguments]
    finished = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=limit
    )
    return finished.stdout.splitlines()[-1]


def count_nodes(graph: onnx.GraphProto) -> int:
    """Nodes, including those in the bodies of loops."""
    bodies = [
        attribute.g
        for node in graph.node
        for attribute in node.attribute
        if attribute.HasField("g")
    ]
    return len(graph.node) + sum(map(count_nodes, bodies))


def measure_in_process(exporter: str, steps: int, hidden: int) -> dict[str, Any] | None:
    """Run `measure_export` in a fresh process; None if it does not finish in time."""
    try:
        line = run_in_process("--one", exporter, str(steps), str(hidden), limit=LIMIT)
    except subprocess.TimeoutExpired:
        return None
    measured: dict[str, Any] = json.loads(line)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=STEPS, help="numbers of steps (default 10 100 1000)"
    )
    parser.add_argument(
        "--hidden", type=int, nargs=2, default=[128, 256], help="units, and units of one more point"
    )
    parser.add_argument("--no-stock", action="store_true", help="leave out torch.onnx.export")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(measure_opening(options.open)))
        return
    if options.one:
        exporter, steps, hidden = options.one
        print(json.dumps(measure_export(exporter, int(steps), int(hidden))))
        return

    exporters = FORMS if options.no_stock else [*FORMS, STOCK]
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    for steps, hidden in sizes(options.steps, *options.hidden):
        for exporter in exporters:
            with console.status(f"{exporter}, T={steps}, H={hidden} ..."):
                measured = measure_in_process(exporter, steps, hidden)
            rows.append(
                {"exporter": exporter, "T": steps, "I": INPUT, "H": hidden, "measured": measured}
            )
    result = publish({"benchmark": "export", "limit": LIMIT, "rows": rows}, options.output)
    print(export_table(result))


if __name__ == "__main__":
    main()
