"""The networks by themselves, beside torch.nn's: `python -m benchmarks.studies.torch_modules`.

Two bidirectional layers with I = H, inference. Contestants take turns (see deploy_rnn/timing.py), each is compared with
torch.nn before it is timed, and one compilation serves all points of one family and H.
"""

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch._inductor
from rich.progress import track
from torch import Tensor, nn

import deploy_rnn
from benchmarks.grid.contestants import side_by_side, torch_contestant
from benchmarks.grid.floor import products
from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import modules_summary, modules_table
from deploy_rnn.timing import compare

FAMILIES: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
HIDDEN, STEPS, BATCH = [64, 128, 256, 512], [50, 200], [1, 32]
LAYERS = 2
LONG = 0.05
"""Seconds of one call above which fewer calls are enough."""


def contestants(layer: nn.RNNBase, folder: Path) -> dict[str, Callable[..., Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated, and says so
        scripted = torch.jit.script(deploy_rnn.convert(layer))
    found: dict[str, Callable[..., Any]] = {
        "torch.nn": layer,
        "deploy_rnn": deploy_rnn.convert(layer),
        "deploy_rnn, scripted": scripted,
        "deploy_rnn, compiled": deploy_rnn.compile(layer),
    }
    if layer.weight_ih_l0.device.type == "cpu":  # what `package` writes
        deploy_rnn.package(layer, (torch.randn(5, 4, layer.input_size),), folder / "layer.pt2")
        found["deploy_rnn, packaged"] = torch._inductor.aoti_load_package(str(folder / "layer.pt2"))
    return found


def measure(modules: dict[str, Callable[..., Any]], x: Tensor) -> dict[str, Any]:
    """Largest difference from torch.nn, and milliseconds, of each; milliseconds of the products alone."""
    calls = {name: torch_contestant(module, x) for name, module in modules.items()}
    floor = products(modules["torch.nn"], x)
    started = time.perf_counter()
    calls["torch.nn"].run()
    long = time.perf_counter() - started > LONG
    blocks = {"rounds": 2, "calls": 4, "warm_up": 1} if long else {}
    found = side_by_side(calls, **blocks)
    return {"contestants": found, "products": 1e3 * compare({"products": floor}, **blocks)["products"].median}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help=f"default {HIDDEN}")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"default {STEPS}")
    options = parser.parse_args()
    if options.device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    rows = []
    for family, hidden in track(list(itertools.product(options.families, options.hidden)), "measuring"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        layer = FAMILIES[family](hidden, hidden, LAYERS, bidirectional=True, device=options.device).eval()
        with TemporaryDirectory() as folder:
            modules = contestants(layer, Path(folder))
        for batch, steps in itertools.product(BATCH, options.steps):
            with torch.no_grad():
                found = measure(modules, torch.randn(steps, batch, hidden, device=options.device))
            rows.append({"family": family, "T": steps, "B": batch, "H": hidden, **found})
    result = publish({"benchmark": "torch_modules", "device": options.device, "rows": rows}, options.output)
    print(modules_table(result) + "\n\n" + modules_summary(result))


if __name__ == "__main__":
    main()
