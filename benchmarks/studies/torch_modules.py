"""Our networks by themselves, compared with torch.nn: `python -m benchmarks.studies.torch_modules`.

Two bidirectional layers with I = H, inference. "compiled" is `deploy_rnn.compile` with its own choice; "library" or
"scan" is what it did not choose, where that is another graph. Contestants take turns in many short blocks (see
deploy_rnn/timing.py), each is compared with torch.nn before it is timed, and one compilation serves all points of one
family and H. `--training` adds forward and backward.
"""

import argparse
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch._inductor
from rich.progress import track
from torch import Tensor, nn

import deploy_rnn
from benchmarks.grid.contestants import Contestant, measure_side_by_side, torch_contestant
from benchmarks.grid.products import torch_products
from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import modules_summary, modules_table, training_table
from deploy_rnn.nn.library import assign_kernels
from deploy_rnn.timing import compare

FAMILIES: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
HIDDEN = [64, 128, 256, 512]
STEPS = [50, 200]
BATCH = [1, 32]
LAYERS = 2
BLOCKS = {"rounds": 8, "calls": 12, "warm_up": 2, "pause": 0.02, "block_seconds": 0.1}
"""A machine is slower for seconds at a time, so that a contestant has many short blocks and not few long ones."""


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
    for recurrence in other_choices(layer):
        modules[f"deploy_rnn, {recurrence}"] = deploy_rnn.compile(layer, recurrence=recurrence)
    if layer.weight_ih_l0.device.type == "cpu":  # what `package` writes
        path = folder / "layer.pt2"
        deploy_rnn.package(layer, (torch.randn(5, 4, layer.input_size),), path)
        modules["deploy_rnn, packaged"] = torch._inductor.aoti_load_package(str(path))
    return modules


def other_choices(layer: nn.RNNBase) -> list[str]:
    """The choices of `compile` that come to another graph than "auto"."""
    chosen = _kernels(layer, "auto")
    return [name for name in ("library", "scan") if _kernels(layer, name) != chosen]


def _kernels(layer: nn.RNNBase, recurrence: str) -> list[type]:
    """What computes a layer in a graph of this choice, besides the loop."""
    return [type(kernel) for kernel in assign_kernels(deploy_rnn.convert(layer), recurrence)]


def measure(modules: dict[str, Callable[..., Any]], x: Tensor) -> dict[str, Any]:
    """Each module's largest difference from torch.nn and milliseconds; milliseconds of the products alone."""
    contestants = {name: torch_contestant(module, x) for name, module in modules.items()}
    rows = measure_side_by_side(contestants, **BLOCKS)
    products = compare({"products": torch_products(modules["torch.nn"], x)}, **BLOCKS)["products"]  # type: ignore[arg-type]
    return {"contestants": rows, "products": 1e3 * products.median}


def measure_training(layer: nn.RNNBase, x: Tensor) -> dict[str, Any]:
    """The same of forward and backward, from the output's sum of squares to every weight and the input."""
    modules = {
        "torch.nn": layer,
        "deploy_rnn": deploy_rnn.convert(layer),
        "deploy_rnn, compiled": deploy_rnn.compile(layer),
    }
    contestants = {name: _trained(module, x) for name, module in modules.items()}
    return {"contestants": measure_side_by_side(contestants, **BLOCKS)}


def make_layer(family: str, hidden: int, device: str) -> nn.RNNBase:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer: nn.RNNBase = FAMILIES[family](hidden, hidden, LAYERS, bidirectional=True, device=device)
    return layer.eval()


def train(
    family: str, hidden: int, step_counts: list[int], device: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of steps, and what `measure_training` has of it."""
    layer = make_layer(family, hidden, device).train()
    for steps in step_counts:
        yield steps, measure_training(layer, torch.randn(steps, BATCH[-1], hidden, device=device))


def _trained(module: Any, x: Tensor) -> Contestant:
    def run() -> Tensor:
        module.zero_grad()
        input = x.clone().requires_grad_()
        module(input)[0].square().mean().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        gradients = [input.grad, *(parameter.grad for parameter in module.parameters())]
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

    return Contestant(run, lambda: run().float().cpu())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help=f"default {HIDDEN}")
    parser.add_argument(
        "--training",
        type=int,
        nargs="*",
        default=[],
        metavar="H",
        help="sizes at which forward and backward are measured, too",
    )
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"default {STEPS}")
    options = parser.parse_args()
    if options.device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    rows = []
    nets = list(itertools.product(options.families, options.hidden))
    for family, hidden in track(nets, "measuring"):
        layer = make_layer(family, hidden, options.device)
        with TemporaryDirectory() as folder:
            modules = make_modules(layer, Path(folder))
        for batch, steps in itertools.product(BATCH, options.steps):
            x = torch.randn(steps, batch, hidden, device=options.device)
            with torch.no_grad():
                measured = measure(modules, x)
            rows.append({"family": family, "T": steps, "B": batch, "H": hidden, **measured})
    training = [
        {"family": family, "T": steps, "B": BATCH[-1], "H": hidden, **measured}
        for family, hidden in itertools.product(options.families, options.training)
        for steps, measured in train(family, hidden, options.steps, options.device)
    ]
    measured_at = {"benchmark": "torch_modules", "device": options.device}
    result = publish(measured_at | {"rows": rows, "training": training}, options.output)
    print(modules_table(result) + "\n\n" + modules_summary(result))
    if training:
        print("\n" + training_table(result))


if __name__ == "__main__":
    main()
