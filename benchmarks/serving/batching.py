"""What sharing runs gains, and what the limits of a batch cost: the evidence for the defaults of `Limits`.

A bidirectional GRU with lengths (two layers, I = 64, H = 128) as a bundle, on the CPU. Requests have one row; most are
short, a few long (log-normal around 40 steps, at most 400):

- flood: all requests at once; measures requests a second, and the share of padding.
- steady: requests at random times (Poisson), at the same rate for all contestants: 0.7 of what one run per request can
  do. Measures the time from when a request is due to its answer.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
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

INPUT = 64
HIDDEN = 128
MAX_STEPS = 400
UNSHARED = "one run per request"
CONTESTANTS = {
    UNSHARED: Limits(max_rows=1),
    "pad to the longest": Limits(max_waste=0.999),
    "defaults": Limits(),
    "max_waste 0.05": Limits(max_waste=0.05),
    "max_waste 0.3": Limits(max_waste=0.3),
    "max_rows 8": Limits(max_rows=8),
    "max_rows 128": Limits(max_rows=128),
    "max_wait 2 ms": Limits(max_wait=0.002),
    "max_wait 10 ms": Limits(max_wait=0.01),
}


def export_gru(folder: Path) -> Path:
    layer = nn.GRU(INPUT, HIDDEN, 2, bidirectional=True, batch_first=True)
    args = (torch.randn(2, 40, INPUT),)
    kwargs = {"lengths": torch.tensor([40, 7])}
    export_bundle(layer, args, folder, kwargs=kwargs, forms=["native"], sizes=(2,))
    return folder


def make_requests(count: int) -> list[Request]:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(40), 0.8, count), 1, MAX_STEPS).astype(int)
    longest = random.standard_normal((1, MAX_STEPS, INPUT), np.float32)
    return [Request({"input": longest[:, :steps]}, outputs=("output",)) for steps in lengths]


def flood(path: Path, limits: Limits, requests: Sequence[Request]) -> dict[str, float]:
    """Requests a second, the share of padding, and rows of a run."""
    with Model(path, limits=limits) as model:
        started = time.perf_counter()
        futures = [model.submit(request) for request in requests]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - started
        statistics = model.statistics()
    steps = statistics.steps_real + statistics.steps_padded
    return {
        "rate": len(requests) / seconds,
        "waste": statistics.steps_padded / steps,
        "rows": statistics.rows / statistics.executions,
    }


def steady(
    path: Path, limits: Limits, requests: Sequence[Request], rate: float
) -> dict[str, float]:
    """Median and 99th percentile of the milliseconds from when a request is due to its answer."""
    gaps = np.random.default_rng(1).exponential(1 / rate, len(requests))
    latencies: list[float] = []

    def record(due: float, _: "Future[Any]") -> None:
        latencies.append(1e3 * (time.perf_counter() - due))

    with Model(path, limits=limits) as model:
        due = time.perf_counter()
        for request, gap in zip(requests, gaps, strict=True):
            due += gap
            time.sleep(max(0.0, due - time.perf_counter()))
            model.submit(request).add_done_callback(partial(record, due))
    return {"p50": float(np.percentile(latencies, 50)), "p99": float(np.percentile(latencies, 99))}


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: median(figures[key] for figures in rounds) for key in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--requests", type=int, default=500, help="of each contestant (default 500)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="of all; medians are shown (default 3)"
    )
    options = parser.parse_args()
    requests = make_requests(options.requests)
    console = Console(stderr=True)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    with TemporaryDirectory() as folder, console.status("exporting ..."):
        path = export_gru(Path(folder) / "gru")
        unshared_rates = [
            flood(path, CONTESTANTS[UNSHARED], requests)["rate"] for _ in range(options.rounds)
        ]
        rate = 0.7 * median(unshared_rates)
        for _ in range(options.rounds):
            for name, limits in CONTESTANTS.items():
                console.log(name)
                figures = flood(path, limits, requests) | steady(path, limits, requests, rate)
                rounds[name].append(figures)
    rows = [{"contestant": name, "measured": medians(rounds[name])} for name in CONTESTANTS]
    result = publish({"benchmark": "batching", "rate": rate, "rows": rows}, options.output)
    print(batching_table(result))


if __name__ == "__main__":
    main()
