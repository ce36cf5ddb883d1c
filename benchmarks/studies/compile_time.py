"""What compiling costs as sequences grow: `python -m benchmarks.studies.compile_time`.

From the call to the first result, in a fresh process without caches, once torch.compile has compiled a sum (the first
time, it looks for the compiler and the processor's instructions): `deploy_rnn.compile`, and the same layers with their
time loop left as a Python loop, which torch.compile unrolls (the RNN only: GRU and LSTM take longer). After two minutes
a contestant is stopped.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import nn

import deploy_rnn
from benchmarks import ROOT
from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import compile_table
from deploy_rnn.nn.recurrent import Recurrent

STEPS = [32, 256, 2048]
FAMILIES: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
LIMIT = 120
"""Seconds after which a contestant is stopped."""


def one(contestant: str, family: str, steps: int) -> float:
    """Seconds from the call to the first result: two bidirectional layers, I = H = 128, B = 4."""
    layer, x = FAMILIES[family](128, 128, 2, bidirectional=True).eval(), torch.randn(steps, 4, 128)
    with torch.no_grad():
        torch.compile(torch.add)(x, x)
        started = time.perf_counter()
        if contestant == "unrolled loop":
            Recurrent._loop = python_loop  # type: ignore[method-assign]
            compiled: nn.Module = torch.compile(deploy_rnn.convert(layer), fullgraph=True)  # type: ignore[assignment]
        else:
            compiled = deploy_rnn.compile(layer)
        compiled(x)
        return time.perf_counter() - started


def python_loop(self: Recurrent, projected: Any, mask: Any, states: Any, weights: Any) -> Any:
    outputs = []
    for step in projected.unbind(0):
        states = self._step(step, states, weights)
        outputs.append(states[0])
    return torch.stack(outputs), states


def apart(contestant: str, family: str, steps: int) -> float | None:
    """`one` in a process of its own; None if it does not finish in time."""
    with TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.studies.compile_time", "--one", contestant, family, str(steps)]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        try:
            said = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=True
            )
        except subprocess.TimeoutExpired:
            return None
        return float(said.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="numbers of steps (default 32 256 2048)")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    options = parser.parse_args()
    if options.one:
        print(one(options.one[0], options.one[1], int(options.one[2])))
        return
    console, rows = Console(stderr=True), []
    for family in options.families:
        for contestant in ("deploy_rnn.compile", "unrolled loop")[: 2 if family == "RNN" else 1]:
            seconds: dict[str, float | None] = {}
            for steps in options.steps:
                if None in seconds.values():
                    seconds[str(steps)] = None  # longer would take longer still
                    continue
                with console.status(f"{contestant}, {family}, T={steps} ..."):
                    seconds[str(steps)] = apart(contestant, family, steps)
            rows.append({"contestant": contestant, "family": family, "seconds": seconds})
    print(compile_table(publish({"benchmark": "compile_time", "limit": LIMIT, "rows": rows}, options.output)))


if __name__ == "__main__":
    main()
