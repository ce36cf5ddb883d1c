"""`deploy-rnn serve` compared with a plain server: latency and throughput under requests that come at random times.

The trained highlighter, on the CPU, over HTTP; a request has one row of 1 to 200 characters (uniform). The servers and
the load (load.py, another process) share this machine's cores. Each contestant gets the same ladder of rates, shares
of the most that the plain server can do, and leaves it where it can no longer follow.

- plain server: Starlette and one `session.run` per request (plain_server.py), on the graph that is fastest for one row.
- limit: the plain server's p99 at its knee, the highest rate at which its p99 is below twice that at the lowest rate.
- throughput: the highest rate of the ladder up to which p99 stays within the limit.
- overhead: median latency at 20 requests a second, without the mean time of a run.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import torch
from rich.console import Console

from benchmarks import ROOT
from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import serving_table
from deploy_rnn.examples.highlight.model import ALPHABET, load
from deploy_rnn.export import export_bundle

PLAIN = "Starlette, one `session.run` per request"
PADDED = "every row padded to 200"
SERVE = (sys.executable, "-m", "deploy_rnn", "serve", "--http-port", "0", "--grpc-port", "0")
CONTESTANTS = {
    PLAIN: [],
    "deploy-rnn serve": [],
    "one run per request": ["--max-rows", "1"],
    PADDED: [],
}
"""Name -> options of `deploy-rnn serve`. The plain server comes first: its rates are the measure of the others."""
LADDER = (0.2, 0.4, 0.6, 0.75, 0.9, 1.05, 1.25, 1.5, 1.75, 2.0, 2.4, 2.8, 3.2, 3.6, 4.0)
"""Rates, as shares of the most that the plain server can do."""
IDLE_RATE = 20.0
"""Requests a second at which hardly any of them meet."""

Point = dict[str, float]
"""Latencies at one rate, and what the server counted."""


def export_highlighter(folder: Path) -> Path:
    args = (torch.randint(2, 2 + len(ALPHABET), (2, 64)), torch.tensor([64, 20]))
    export_bundle(load(), args, folder, forms=["scan", "native"], sizes=(2,))
    return folder


@contextmanager
def run_server(name: str, bundle: Path) -> Iterator[int]:
    """Run a contestant; yields its HTTP port."""
    if name == PLAIN:
        command = [
            sys.executable,
            "-m",
            "benchmarks.serving.plain_server",
            str(bundle / "native.onnx"),
        ]
    else:
        command = [*SERVE, *CONTESTANTS[name], str(bundle)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            matches = (re.match(r"HTTP on \S+:(\d+),", line) for line in process.stdout)
            match = next(filter(None, matches))
            yield int(match[1])
        finally:
            process.kill()


def measure_rate(port: int, rate: float, seconds: float, *, pad: bool) -> Point:
    """Latencies in milliseconds, and what the server's counters say of its runs in that time."""
    before = read_counters(port)
    command = [sys.executable, "-m", "benchmarks.serving.load", str(port), str(rate), str(seconds)]
    if pad:
        command.append("--pad")
    point: Point = json.loads(subprocess.check_output(command, cwd=ROOT))
    counts = {name: value - before.get(name, 0.0) for name, value in read_counters(port).items()}
    runs = max(1.0, counts["executions"])
    point["run"] = 1e3 * counts["compute_seconds"] / runs
    point["rows"] = counts["rows"] / runs
    # The plain server does not count steps.
    steps = counts.get("steps_real", 0.0) + counts.get("steps_padded", 0.0)
    if steps:
        point["waste"] = counts["steps_padded"] / steps
    return point


def read_counters(port: int) -> dict[str, float]:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    counters = re.findall(r'^deploy_rnn_(\w+)_total\{model="\w+"\} (\S+)$', text, re.M)
    return {name: float(value) for name, value in counters}


def climb(port: int, top_rate: float, seconds: float, *, pad: bool) -> list[Point]:
    """Go up the ladder until an answer is missing, or p99 exceeds what any service would allow."""
    measure_rate(port, IDLE_RATE, 0.5, pad=pad)
    points = []
    for share in LADDER:
        point = measure_rate(port, share * top_rate, seconds, pad=pad)
        points.append(point)
        if point["lost"] or point["p99"] > 200:
            break
    return points


def highest_within(points: Sequence[Point], limit: float) -> Point | None:
    """The last point before p99 first exceeds `limit`; None if the first point does."""
    within = None
    for point in points:
        if point["lost"] or point["p99"] > limit:
            break
        within = point
    return within


def knee(points: Sequence[Point]) -> Point:
    """The highest point whose p99 is below twice that of the lowest."""
    return highest_within(points, 2 * points[0]["p99"]) or points[0]


def measure_top_rate(port: int) -> float:
    """Requests a second that a server answers if it is sent more than it can answer."""
    started = time.perf_counter()
    point = measure_rate(port, 3000, 0.5, pad=False)
    return point["answers"] / (time.perf_counter() - started)


def measure(bundle: Path, seconds: float, console: Console) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    top_rate = 0.0
    limit = 0.0
    for name in CONTESTANTS:
        console.log(name)
        pad = name == PADDED
        with run_server(name, bundle) as port:
            idle = measure_rate(port, IDLE_RATE, seconds, pad=pad)
            if name == PLAIN:
                top_rate = measure_top_rate(port)
            points = climb(port, top_rate, seconds, pad=pad)
        if name == PLAIN:
            limit = knee(points)["p99"]
        overhead = idle["p50"] - idle["run"]
        best = highest_within(points, limit)
        rows.append(
            {"contestant": name, "overhead": overhead, "idle": idle, "points": points, "best": best}
        )
    return {"benchmark": "serving", "most": top_rate, "limit": limit, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--bundle", type=Path, help="a bundle of an earlier run, instead of a new one"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each rate (default 3)")
    options = parser.parse_args()
    console = Console(stderr=True)
    with TemporaryDirectory() as folder, console.status("measuring ..."):
        bundle = options.bundle or export_highlighter(Path(folder) / "highlight")
        result = measure(bundle, options.seconds, console)
    print(serving_table(publish(result, options.output)))


if __name__ == "__main__":
    main()
