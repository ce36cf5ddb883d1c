"""What compiling costs as sequences grow: `python -m benchmarks.studies.compile_time`.

Measures seconds from the call to the first result, in a fresh process without caches. torch.compile compiles a sum
first, because the first time it looks for the compiler and the processor's instructions. The contestants are
`deploy_rnn.compile`, and the same layers with a Python loop over time, which torch.compile unrolls (the RNN only: GRU
and LSTM take longer). After two minutes a contestant is stopped.
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
from deploy_rnn.nn.recurrence import Recurrence

STEPS = [32, 256, 2048]
FAMILIES: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
OURS = "deploy_rnn.compile"
UNROLLED = "unrolled loop"
LIMIT = 120
"""Seconds after which a contestant is stopped."""


def time_compilation(contestant: str, family: str, steps: int) -> float:
    """Seconds from the call to the first result: two bidirectional layers, I = H = 128, B = 4."""
    layer = FAMILIES[family](128, 128, 2, bidirectional=True).eval()
    x = torch.randn(steps, 4, 128)
    with torch.no_grad():
        torch.compile(torch.add)(x, x)
        started = time.perf_counter()
        if contestant == UNROLLED:
            converted: Any = deploy_rnn.convert(layer)
            converted.recurrence = PythonLoop()
            compiled: Any = torch.compile(converted, fullgraph=True)
        else:
            compiled = deploy_rnn.compile(layer)
        compiled(x)
        return time.perf_counter() - started


class PythonLoop(Recurrence):
    """A loop that torch.compile unrolls."""

    def compiled_loop(self, step: Any, projected: Any, mask: Any, states: Any, weights: Any) -> Any:
        outputs = []
        for projected_step in projected.unbind(0):
            states = step(projected_step, states, weights)
            outputs.append(states[0])
        return torch.stack(outputs), states


def time_in_process(contestant: str, family: str, steps: int) -> float | None:
    """Run `time_compilation` in a fresh process; None if it does not finish in time."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.studies.compile_time",
        "--one",
        contestant,
        family,
        str(steps),
    ]
    with TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        }
        try:
            finished = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=True,
            )
        except subprocess.TimeoutExpired:
            return None
    return float(finished.stdout.split()[-1])


def measure(
    contestant: str, family: str, step_counts: list[int], console: Console
) -> dict[str, float | None]:
    """Number of steps -> seconds; None if compiling was stopped."""
    seconds: dict[str, float | None] = {}
    for steps in step_counts:
        # Where a shorter sequence was stopped, a longer one would be too.
        if None in seconds.values():
            seconds[str(steps)] = None
            continue
        with console.status(f"{contestant}, {family}, T={steps} ..."):
            seconds[str(steps)] = time_in_process(contestant, family, steps)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=STEPS, help="numbers of steps (default 32 256 2048)"
    )
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    options = parser.parse_args()
    if options.one:
        contestant, family, steps = options.one
        print(time_compilation(contestant, family, int(steps)))
        return

    console = Console(stderr=True)
    rows = []
    for family in options.families:
        contestants = [OURS, UNROLLED] if family == "RNN" else [OURS]
        for contestant in contestants:
            seconds = measure(contestant, family, options.steps, console)
            rows.append({"contestant": contestant, "family": family, "seconds": seconds})
    result = publish({"benchmark": "compile_time", "limit": LIMIT, "rows": rows}, options.output)
    print(compile_table(result))


if __name__ == "__main__":
    main()
