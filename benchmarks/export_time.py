"""What an export costs, beside PyTorch's own exporter: `python benchmarks/export_time.py`.

Each export runs in a fresh process, after torch is imported, and is timed from the call to the finished file. Ours
includes the check in onnxruntime; PyTorch's has none.
"""

import argparse
import json
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

from machine import publish
from rnn import stock_export
from tables import export_table

STEPS = [10, 100]
EXPORTERS = ["deploy_rnn", "torch.onnx.export"]


def one(exporter: str, steps: int) -> dict[str, Any]:
    """Export a two-layer bidirectional RNN once."""
    layer, x = nn.RNN(64, 128, 2, bidirectional=True).eval(), torch.randn(steps, 2, 64)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rnn.onnx"
        started = time.perf_counter()
        if exporter == "deploy_rnn":
            from deploy_rnn.export import export_onnx

            export_onnx(layer, x, path)
        else:
            stock_export(layer, x, path)
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(folder).iterdir())  # PyTorch puts the weights beside the graph
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
    return {"exporter": exporter, "T": steps, "seconds": seconds, "nodes": nodes, "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--one", nargs=2, metavar=("EXPORTER", "T"), help="a single export, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]))))
        return
    rows = []
    console = Console(stderr=True)
    for steps in options.steps:
        for exporter in EXPORTERS:
            with console.status(f"{exporter}, T={steps} ..."):
                command = [sys.executable, __file__, "--one", exporter, str(steps)]
                made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(made.splitlines()[-1]))
    print(export_table(publish({"benchmark": "export_time", "rows": rows}, options.output)))


if __name__ == "__main__":
    main()
