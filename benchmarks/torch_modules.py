"""The networks by themselves, beside torch.nn's: `python benchmarks/torch_modules.py`.

Two bidirectional layers with I = H, inference. Contestants take turns (see deploy_rnn/timing.py), each is compared with
torch.nn before it is timed, and one compilation serves all points of one family and H.
"""

import argparse
import itertools
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

import deploy_rnn
from machine import publish
from rnn import side_by_side, torch_contestant
from tables import modules_summary, modules_table

FAMILIES: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
HIDDEN, STEPS, BATCH = [64, 128, 256, 512], [50, 200], [1, 32]
LONG = 0.05
"""Seconds of one call above which fewer calls are enough."""


def contestants(layer: nn.RNNBase) -> dict[str, nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated, and says so
        scripted = torch.jit.script(deploy_rnn.convert(layer))
    return {
        "torch.nn": layer,
        "deploy_rnn": deploy_rnn.convert(layer),
        "deploy_rnn, scripted": scripted,
        "deploy_rnn, compiled": deploy_rnn.compile(layer),
    }


def measure(modules: dict[str, nn.Module], x: Tensor) -> dict[str, Any]:
    """Largest difference from torch.nn, and milliseconds, of each."""
    calls = {name: torch_contestant(module, x) for name, module in modules.items()}
    started = time.perf_counter()
    calls["torch.nn"].run()
    long = time.perf_counter() - started > LONG
    return side_by_side(calls, rounds=2, calls=4, warm_up=1) if long else side_by_side(calls)


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
        modules = contestants(FAMILIES[family](hidden, hidden, 2, bidirectional=True, device=options.device).eval())
        for batch, steps in itertools.product(BATCH, options.steps):
            with torch.no_grad():
                found = measure(modules, torch.randn(steps, batch, hidden, device=options.device))
            rows.append({"family": family, "T": steps, "B": batch, "H": hidden, "contestants": found})
    result = publish({"benchmark": "torch_modules", "device": options.device, "rows": rows}, options.output)
    print(modules_table(result) + "\n\n" + modules_summary(result))


if __name__ == "__main__":
    main()
