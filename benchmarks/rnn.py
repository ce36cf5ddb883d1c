"""One bidirectional RNN stack, run by everything a user has at hand: `python benchmarks/rnn.py`.

Contestants take turns (see deploy_rnn/timing.py); each is compared with torch.nn.RNN before it is timed. On CUDA
tensors stay on the device, and a call returns when its work is done.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import deploy_rnn
from contestants import Contestant, onnx_contestant, side_by_side, torch_contestant
from deploy_rnn.export import export_onnx
from graphs import stock_export
from machine import publish
from tables import rnn_table

LAYERS = 2
POINTS = [(50, 1, 64, 128), (50, 32, 64, 128), (100, 1, 256, 256), (100, 32, 256, 256)]
"""T steps, B batch, I input size, H hidden size."""


def contestants(layer: nn.RNN, x: Tensor, folder: Path, *, stock: bool) -> dict[str, Contestant]:
    found = {
        "torch.nn.RNN": torch_contestant(layer, x),
        "deploy_rnn": torch_contestant(deploy_rnn.convert(layer), x),
        "deploy_rnn, compiled": torch_contestant(deploy_rnn.compile(layer), x),
    }
    export_onnx(layer, x, folder / "ours.onnx")
    found["deploy_rnn, onnxruntime"] = onnx_contestant(folder / "ours.onnx", x)
    if stock:
        stock_export(layer, x, folder / "stock.onnx")
        found["torch.onnx.export, onnxruntime"] = onnx_contestant(folder / "stock.onnx", x)
    return found


def measure(steps: int, batch: int, inputs: int, hidden: int, device: str, *, stock: bool) -> dict[str, Any]:
    """Every contestant at one point: largest difference from torch.nn.RNN, and milliseconds."""
    layer = nn.RNN(inputs, hidden, LAYERS, bidirectional=True, device=device).eval()
    x = torch.randn(steps, batch, inputs, device=device)
    with TemporaryDirectory() as folder, torch.no_grad():
        calls = contestants(layer, x, Path(folder), stock=stock)
        found = side_by_side(calls)
    return {"T": steps, "B": batch, "I": inputs, "H": hidden, "contestants": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--points", type=int, default=len(POINTS), help="only the first so many")
    parser.add_argument("--no-stock", action="store_true", help="without torch.onnx's own graph, which takes minutes")
    options = parser.parse_args()
    if options.device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    console = Console(stderr=True)
    rows = []
    for point in POINTS[: options.points]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        with console.status(f"T={point[0]} B={point[1]} I={point[2]} H={point[3]} ..."):
            rows.append(measure(*point, options.device, stock=not options.no_stock))
    result = {"benchmark": "rnn", "device": options.device, "layers": LAYERS, "rows": rows}
    print(rnn_table(publish(result, options.output)))


if __name__ == "__main__":
    main()
