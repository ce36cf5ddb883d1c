"""What sharing runs brings, and what the limits of a batch cost: the evidence for the defaults of `Limits`.

A bidirectional GRU with lengths (two layers, I = 64, H = 128) as a bundle, on the CPU. Requests of one row, most
of them short, a few long (log-normal around 40 steps, at most 400):

- flood: all requests at once; what comes out a second, and how much of it was padding.
- steady: they come at random (Poisson) at the same rate for all, 0.7 of what one run per request can do; how long one
  waits from coming to answer.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import batching_table
from deploy_rnn.export import export_bundle
from deploy_rnn.serving import Limits, Model, Request

INPUT, HIDDEN = 64, 128
ONE = "one run per request"
CONTESTANTS = {
    ONE: Limits(max_rows=1),
    "pad to the longest": Limits(max_waste=0.999),
    "defaults": Limits(),
    "max_waste 0.05": Limits(max_waste=0.05),
    "max_waste 0.3": Limits(max_waste=0.3),
    "max_rows 8": Limits(max_rows=8),
    "max_rows 128": Limits(max_rows=128),
    "max_wait 2 ms": Limits(max_wait=0.002),
    "max_wait 10 ms": Limits(max_wait=0.01),
}


def bundle(folder: Path) -> Path:
    layer = nn.GRU(INPUT, HIDDEN, 2, bidirectional=True, batch_first=True)
    args = (torch.randn(2, 40, INPUT),)
    export_bundle(layer, args, folder, kwargs={"lengths": torch.tensor([40, 7])}, forms=["native"], sizes=(2,))
    return folder


def requests(count: int) -> list[Request]:
    random = np.random.default_rng(0)
    steps = np.clip(random.lognormal(np.log(40), 0.8, count), 1, 400).astype(int)
    rows = random.standard_normal((1, 400, INPUT), np.float32)
    return [Request({"input": rows[:, :each]}, outputs=("output",)) for each in steps]


def flood(path: Path, limits: Limits, asked: Sequence[Request]) -> dict[str, float]:
    """Requests a second, the share of padding, and rows of a run."""
    with Model(path, limits=limits) as model:
        started = time.perf_counter()
        futures = [model.submit(request) for request in asked]
        for future in futures:
            future.result()
        seconds, said = time.perf_counter() - started, model.statistics()
    waste = said.steps_padded / (said.steps_real + said.steps_padded)
    return {"rate": len(asked) / seconds, "waste": waste, "rows": said.rows / said.executions}


def steady(path: Path, limits: Limits, asked: Sequence[Request], rate: float) -> dict[str, float]:
    """Median and 99th percentile of the milliseconds from when a request should have come to its answer."""
    gaps = np.random.default_rng(1).exponential(1 / rate, len(asked))
    taken: list[float] = []

    def note(due: float, _: "Future[Any]") -> None:
        taken.append(1e3 * (time.perf_counter() - due))

    with Model(path, limits=limits) as model:
        due = time.perf_counter()
        for request, gap in zip(asked, gaps, strict=True):
            due += gap
            time.sleep(max(0.0, due - time.perf_counter()))
            model.submit(request).add_done_callback(lambda future, due=due: note(due, future))
    return {"p50": float(np.percentile(taken, 50)), "p99": float(np.percentile(taken, 99))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--requests", type=int, default=500, help="of each contestant (default 500)")
    parser.add_argument("--rounds", type=int, default=3, help="of all; medians are shown (default 3)")
    options = parser.parse_args()
    asked, console = requests(options.requests), Console(stderr=True)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    with TemporaryDirectory() as folder, console.status("exporting ..."):
        path = bundle(Path(folder) / "gru")
        rate = 0.7 * median(flood(path, CONTESTANTS[ONE], asked)["rate"] for _ in range(options.rounds))
        for _ in range(options.rounds):
            for name, limits in CONTESTANTS.items():
                console.log(name)
                found[name].append(flood(path, limits, asked) | steady(path, limits, asked, rate))
    rows = [
        {"contestant": name, "measured": {key: median(each[key] for each in rounds) for key in rounds[0]}}
        for name, rounds in found.items()
    ]
    print(batching_table(publish({"benchmark": "batching", "rate": rate, "rows": rows}, options.output)))


if __name__ == "__main__":
    main()
