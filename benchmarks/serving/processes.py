"""One server, and several behind nginx: `python -m benchmarks.serving.processes`, in three minutes on two cores.

All of them run at the same time, and wait while another one is measured; each is measured in turn, several times over.
A load that has the same cores (load.py) keeps sixteen requests under way: of a tiny model, for which reading and
writing take most of the time, and of the highlighter, for which its runs do. Every answer is compared with PyTorch's; a
wrong one fails the run. nginx and supervisord must be there: `make nginx` installs both, and the variable SUPERVISORD
says where.

With `--before CHECKOUT`, the server is measured in turn with that of another checkout, such as the one before a change,
and with the sketch. Processor time in turns tells what a change does even while the machine has other work.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reporting.machine import publish, versions
from benchmarks.reporting.serving_tables import processes_table
from benchmarks.serving.contestants import (
    DEPLOY_RNN,
    PROTOCOLS,
    SKETCH,
    Running,
    run_behind_nginx,
    run_deploy_rnn,
    run_sketch,
)
from benchmarks.serving.models import Served, prepare
from benchmarks.serving.serve import SERVER_PACKAGES, WARM_RATE, WARM_SECONDS, run_load

MODELS = ("tiny", "highlight")

CALLS = 16
"""Requests under way at any time."""

Point = dict[str, Any]


def start(stack: ExitStack, served: list[Served], before: Path | None) -> dict[str, Running]:
    """Name -> a server, or several, that answer.

    Args:
        before: a checkout to compare with; None for servers behind nginx.
    """
    bundles = [model.bundle for model in served]
    if before is not None:
        return {
            "before": stack.enter_context(run_deploy_rnn(bundles, checkout=before.absolute())),
            DEPLOY_RNN: stack.enter_context(run_deploy_rnn(bundles)),
            SKETCH: stack.enter_context(run_sketch(bundles)),
        }
    return {
        DEPLOY_RNN: stack.enter_context(run_deploy_rnn(bundles)),
        "nginx, 1 process": stack.enter_context(run_behind_nginx(bundles, 1)),
        "nginx, 2 processes": stack.enter_context(run_behind_nginx(bundles, 2)),
    }


def measure(
    running: dict[str, Running], served: list[Served], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each server, protocol and model."""
    calls = str(options.calls)
    points: dict[tuple[str, str, str], list[Point]] = {}
    for number in range(options.rounds + 1):
        for name, server in running.items():
            for protocol in filter(server.ports.__contains__, options.protocols):
                for model in served:
                    if number == 0:
                        warm_up = ("--rate", str(WARM_RATE))
                        run_load(server, protocol, [model], WARM_SECONDS, *warm_up)
                        continue
                    point = run_load(server, protocol, [model], options.seconds, "--calls", calls)
                    points.setdefault((name, protocol, model.name), []).append(point)
    rows = []
    for (name, protocol, model_name), measured in points.items():
        row = {"contestant": name, "protocol": protocol, "model": model_name}
        rows.append(row | summary(measured) | {"points": measured})
    return rows


def summary(points: list[Point]) -> dict[str, float]:
    """Medians over the rounds."""
    return {
        "rate": median(point["right"] / point["seconds"] for point in points),
        "p99": median(point["p99"] for point in points),
        "cpu_ms": median(1e3 * point["server_cpu"] / max(1, point["right"]) for point in points),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each point")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=CALLS, help="requests under way (default 16)")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="compare with its server")
    parser.add_argument("--files", type=Path, help="folder that keeps models and traffic")
    parser.add_argument("--output", type=Path, metavar="FILE", help="gets the JSON")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        files = (options.files or Path(temporary)).absolute()
        files.mkdir(parents=True, exist_ok=True)
        served = [prepare(name, files) for name in MODELS]
        running = start(stack, served, options.before)
        rows = measure(running, served, options)
    header = {
        "benchmark": "serving_processes",
        "calls": options.calls,
        "server": versions(SERVER_PACKAGES),
    }
    result = publish({**header, "rows": rows}, options.output)
    print(f"\n{processes_table(result)}")
    points = [point for row in rows for point in row["points"]]
    missed = sum(point["sent"] - point["right"] for point in points)
    if missed:
        sys.exit(f"{missed} answers were missing or wrong.")


if __name__ == "__main__":
    main()
