"""`deploy-rnn serve` beside a plain server: latency and throughput under requests that come at random.

The trained highlighter, on the CPU, over HTTP; one row of 1 to 200 characters (uniform) a request; the servers and the
load (load.py, a process of its own) share this machine's cores. Each contestant gets the same ladder of rates, shares
of what the plain server can do at most, and leaves it where it can no longer follow.

- plain: Starlette and one `session.run` per request (plain_server.py), on the graph that is the fastest for one row.
- the limit: the plain server's p99 at its knee, the highest rate at which it is below twice its p99 at the lowest.
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
SERVE = (sys.executable, "-m", "deploy_rnn", "serve", "--http-port", "0", "--grpc-port", "0")
CONTESTANTS = {
    PLAIN: [],
    "deploy-rnn serve": [],
    "one run per request": ["--max-rows", "1"],
    "every row padded to 200": [],
}
PADDED = "every row padded to 200"
LADDER = (0.2, 0.4, 0.6, 0.75, 0.9, 1.05, 1.25, 1.5, 1.75, 2.0, 2.4, 2.8, 3.2, 3.6, 4.0)
SLOW = 20.0


def bundle(folder: Path) -> Path:
    args = (torch.randint(2, 2 + len(ALPHABET), (2, 64)), torch.tensor([64, 20]))
    export_bundle(load(), args, folder, forms=["scan", "native"], sizes=(2,))
    return folder


@contextmanager
def server(name: str, path: Path) -> Iterator[int]:
    """The port of a contestant that answers."""
    plain = [sys.executable, "-m", "benchmarks.serving.plain_server", str(path / "native.onnx")]
    command = plain if name == PLAIN else [*SERVE, *CONTESTANTS[name], str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.match(r"HTTP on \S+:(\d+),", line) for line in process.stdout)))
            yield int(found[1])
        finally:
            process.kill()


def ask(port: int, rate: float, seconds: float, *, pad: bool) -> dict[str, float]:
    """Latencies in milliseconds, and what the server says of its runs meanwhile."""
    before = figures(port)
    command = [sys.executable, "-m", "benchmarks.serving.load", str(port), str(rate), str(seconds)]
    if pad:
        command.append("--pad")
    found: dict[str, float] = json.loads(subprocess.check_output(command, cwd=ROOT))
    ran = {name: value - before.get(name, 0.0) for name, value in figures(port).items()}
    runs, steps = ran["executions"], ran.get("steps_real", 0.0) + ran.get("steps_padded", 0.0)
    found["run"] = 1e3 * ran["compute_seconds"] / max(1.0, runs)
    found["rows"] = ran["rows"] / max(1.0, runs)
    return found | ({"waste": ran["steps_padded"] / steps} if steps else {})


def figures(port: int) -> dict[str, float]:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return {
        name: float(value) for name, value in re.findall(r'^deploy_rnn_(\w+)_total\{model="\w+"\} (\S+)$', text, re.M)
    }


def climb(port: int, most: float, seconds: float, *, pad: bool) -> list[dict[str, float]]:
    """Up the ladder until an answer is missing, or 99 of 100 take longer than any service would allow."""
    ask(port, SLOW, 0.5, pad=pad)
    points = []
    for share in LADDER:
        points.append(ask(port, share * most, seconds, pad=pad))
        if points[-1]["lost"] or points[-1]["p99"] > 200:
            break
    return points


def highest(points: Sequence[dict[str, float]], limit: float) -> dict[str, float] | None:
    """The last point before p99 first exceeds `limit`; None if it does from the beginning."""
    within = None
    for point in points:
        if point["lost"] or point["p99"] > limit:
            break
        within = point
    return within


def most_of(port: int) -> float:
    """Requests a second that the plain server answers if there are always more."""
    started = time.perf_counter()
    found = ask(port, 3000, 0.5, pad=False)
    return found["answers"] / (time.perf_counter() - started)


def measure(path: Path, seconds: float, console: Console) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    most = limit = 0.0
    for name in CONTESTANTS:
        console.log(name)
        with server(name, path) as port:
            pad = name == PADDED
            idle = ask(port, SLOW, seconds, pad=pad)
            most = most or most_of(port)
            points = climb(port, most, seconds, pad=pad)
        limit = limit or knee(points)["p99"]
        row = {"contestant": name, "overhead": idle["p50"] - idle["run"], "idle": idle, "points": points}
        rows.append(row | {"best": highest(points, limit)})
    return {"benchmark": "serving", "most": most, "limit": limit, "rows": rows}


def knee(points: Sequence[dict[str, float]]) -> dict[str, float]:
    """The highest point whose p99 is below twice that of the lowest."""
    return highest(points, 2 * points[0]["p99"]) or points[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--bundle", type=Path, help="made before, instead of a new one")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each rate (default 3)")
    options = parser.parse_args()
    console = Console(stderr=True)
    with TemporaryDirectory() as folder, console.status("measuring ..."):
        path = options.bundle or bundle(Path(folder) / "highlight")
        result = measure(path, options.seconds, console)
    print(serving_table(publish(result, options.output)))


if __name__ == "__main__":
    main()
