"""What an export costs, beside PyTorch's own exporter: `python -m benchmarks.studies.exporters`.

Each export runs in a fresh process, after torch is imported, and is timed from the call to the finished file. Ours
includes the check in onnxruntime; PyTorch's has none. Then the file is opened in onnxruntime, on one core, in a process
of its own. Memory is the largest resident set of the process that exports, and what opening adds to the one that opens.
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


def points(steps: list[int], hidden: int, wide: int) -> list[tuple[int, int]]:
    """(T, H): every number of steps, and the middle one again with more hidden units."""
    return [*((count, hidden) for count in steps), (sorted(steps)[len(steps) // 2], wide)]


def one(exporter: str, steps: int, hidden: int) -> dict[str, Any]:
    """Export a two-layer bidirectional RNN once, and open the file."""
    layer, x = nn.RNN(INPUT, hidden, 2, bidirectional=True).eval(), torch.randn(steps, 2, INPUT)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rnn.onnx"
        started = time.perf_counter()
        if exporter == STOCK:
            stock_export(layer, x, path)
        else:
            from deploy_rnn.export import export_onnx

            export_onnx(layer, x, path, form=exporter)
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(folder).iterdir())  # PyTorch puts the weights beside the graph
        nodes = count(onnx.load(path, load_external_data=False).graph)
        peak = peak_memory()
        opening = json.loads(call("--open", str(path)))
    weights = sum(weight.numel() * weight.element_size() for weight in layer.parameters())
    return {"seconds": seconds, "nodes": nodes, "bytes": size, "weights": weights, "peak": peak, **opening}


def opened(path: str) -> dict[str, float]:
    """Seconds to open a file in onnxruntime, and the bytes of memory that it holds then."""
    before = resident()
    started = time.perf_counter()
    session = open_session(path, threads=1)
    load, memory = time.perf_counter() - started, resident() - before
    del session
    return {"load": load, "memory": memory}


def resident() -> int:
    """Bytes of memory of this process; where Linux does not tell, the most that it has had."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.exists() else peak_memory()


def peak_memory() -> int:
    """The most bytes of memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def call(*arguments: str, limit: int | None = None) -> str:
    """The last line that this script prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.studies.exporters", *arguments]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=limit
    ).stdout.splitlines()[-1]


def count(graph: onnx.GraphProto) -> int:
    """Nodes, with those in the bodies of loops."""
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return len(graph.node) + sum(map(count, bodies))


def apart(exporter: str, steps: int, hidden: int) -> dict[str, Any] | None:
    """`one` in a process of its own; None if it does not finish in time."""
    try:
        measured: dict[str, Any] = json.loads(call("--one", exporter, str(steps), str(hidden), limit=LIMIT))
    except subprocess.TimeoutExpired:
        return None
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="numbers of steps (default 10 100 1000)")
    parser.add_argument("--hidden", type=int, nargs=2, default=[128, 256], help="units, and units of one more point")
    parser.add_argument("--no-stock", action="store_true", help="leave out torch.onnx.export")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(opened(options.open)))
        return
    if options.one:
        exporter, steps, hidden = options.one
        print(json.dumps(one(exporter, int(steps), int(hidden))))
        return
    rows: list[dict[str, Any]] = []
    console = Console(stderr=True)
    for steps, hidden in points(options.steps, *options.hidden):
        for exporter in FORMS if options.no_stock else [*FORMS, STOCK]:
            with console.status(f"{exporter}, T={steps}, H={hidden} ..."):
                measured = apart(exporter, steps, hidden)
            rows.append({"exporter": exporter, "T": steps, "I": INPUT, "H": hidden, "measured": measured})
    print(export_table(publish({"benchmark": "export", "limit": LIMIT, "rows": rows}, options.output)))


if __name__ == "__main__":
    main()
