"""Our networks by themselves, compared with torch.nn: `python -m benchmarks.studies.torch_modules`.

Two bidirectional layers with I = H, inference. "compiled" is `deploy_rnn.compile` with its own choice; "library" and
"scan" are what it chooses from. Contestants take turns (see deploy_rnn/timing.py), each is compared with
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
from benchmarks.grid.contestants import measure_side_by_side, torch_contestant
from benchmarks.grid.products import torch_products
from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import modules_summary, modules_table
from deploy_rnn.nn.library import assign_kernels
from deploy_rnn.timing import compare

FAMILIES: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
HIDDEN = [64, 128, 256, 512]
STEPS = [50, 200]
BATCH = [1, 32]
LAYERS = 2
LONG = 0.05
"""Seconds of one call above which fewer calls are enough."""


def make_modules(layer: nn.RNNBase, folder: Path) -> dict[str, Callable[..., Any]]:
    """The layer, and everything of ours that runs it; `folder` takes a package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated, and says so
        scripted = torch.jit.script(deploy_rnn.convert(layer))
    modules: dict[str, Callable[..., Any]] = {
        "torch.nn": layer,
        "deploy_rnn": deploy_rnn.convert(layer),
        "deploy_rnn, scripted": scripted,
        "deploy_rnn, compiled": deploy_rnn.compile(layer),
    }
    # What "auto" chose from. A layer for which no library has a kernel is the same loop with every choice.
    if assign_kernels(deploy_rnn.convert(layer), "library"):
        modules["deploy_rnn, library"] = deploy_rnn.compile(layer, recurrence="library")
        modules["deploy_rnn, scan"] = deploy_rnn.compile(layer, recurrence="scan")
    else:
        modules["deploy_rnn, library"] = modules["deploy_rnn, scan"] = modules[
            "deploy_rnn, compiled"
        ]
    if layer.weight_ih_l0.device.type == "cpu":  # what `package` writes
        path = folder / "layer.pt2"
        deploy_rnn.package(layer, (torch.randn(5, 4, layer.input_size),), path)
        modules["deploy_rnn, packaged"] = torch._inductor.aoti_load_package(str(path))
    return modules


def measure(modules: dict[str, Callable[..., Any]], x: Tensor) -> dict[str, Any]:
    """Each module's largest difference from torch.nn and milliseconds; milliseconds of the products alone."""
    contestants = {name: torch_contestant(module, x) for name, module in modules.items()}
    started = time.perf_counter()
    contestants["torch.nn"].run()
    is_long = time.perf_counter() - started > LONG
    blocks = {"rounds": 2, "calls": 4, "warm_up": 1} if is_long else {}
    rows = measure_side_by_side(contestants, **blocks)
    products = compare({"products": torch_products(modules["torch.nn"], x)}, **blocks)["products"]
    return {"contestants": rows, "products": 1e3 * products.median}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help=f"default {HIDDEN}")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"default {STEPS}")
    options = parser.parse_args()
    if options.device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    rows = []
    nets = list(itertools.product(options.families, options.hidden))
    for family, hidden in track(nets, "measuring"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        layer = FAMILIES[family](
            hidden, hidden, LAYERS, bidirectional=True, device=options.device
        ).eval()
        with TemporaryDirectory() as folder:
            modules = make_modules(layer, Path(folder))
        for batch, steps in itertools.product(BATCH, options.steps):
            x = torch.randn(steps, batch, hidden, device=options.device)
            with torch.no_grad():
                measured = measure(modules, x)
            rows.append({"family": family, "T": steps, "B": batch, "H": hidden, **measured})
    result = publish(
        {"benchmark": "torch_modules", "device": options.device, "rows": rows}, options.output
    )
    print(modules_table(result) + "\n\n" + modules_summary(result))


if __name__ == "__main__":
    main()
