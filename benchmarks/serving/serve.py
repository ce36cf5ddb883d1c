"""Servers compared: `python -m benchmarks.serving.serve`, or `make serving-bench`, which installs Triton first.

Parts, each a table and a JSON file; together they take about twelve minutes on two cores:

- lengths: the trained highlighter, rows of 1 to 200 characters (uniform) at random times (Poisson, an open loop), at
  rising rates, over HTTP and gRPC. Latency, and the capacity: the highest rate that is kept up (ladder.py).
- whole: the same model without lengths, so that only rows of equal length may share a run.
- models: three models of unlike size at once, with a third of the requests each, over HTTP.
- cpu: the processor time of a request besides the run of its model, with a tiny model and eight requests at a time.

All contestants (contestants.py) answer the same bytes, in the same order, at the same times. Each runs alone. The load
(load.py, another process) has the same cores, and its processor time is recorded. Every answer is compared with
PyTorch's; a wrong one is counted, and the run fails.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
from rich.console import Console

from benchmarks import ROOT
from benchmarks.reporting.machine import publish, versions
from benchmarks.reporting.serving_tables import TABLES
from benchmarks.serving.contestants import (
    CONTESTANTS,
    PROTOCOLS,
    MissingError,
    Running,
    triton_versions,
)
from benchmarks.serving.ladder import RATES, Point, climb
from benchmarks.serving.models import Served, prepare
from benchmarks.serving.traffic import Traffic

QUICK_RATES = (200.0, 700.0)
MODELS_RATES = (150.0, 300.0, 450.0)
SERVER_PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools", "orjson", "grpcio", "protobuf")
CALLS = 8
"""Requests under way at any time in part `cpu`."""
WARM_RATE = 100.0
WARM_SECONDS = 1.0
REST_SECONDS = 0.5
"""Between two loads: a server that was overrun still works off what it has."""

Row = dict[str, Any]
"""What one contestant did over one protocol, or why it is missing."""
Measure = Callable[[Running, str], Row]

console = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long: a point takes `seconds`, or longer if it would have less than `requests`."""

    contestants: Sequence[str]
    protocols: Sequence[str]
    rates: Sequence[float]
    models_rates: Sequence[float]
    search: bool
    seconds: float
    requests: int
    files: Path


def run_load(
    running: Running, protocol: str, served: Sequence[Served], seconds: float, *mode: str
) -> Point:
    """What the load reports, and the processor seconds that the server took meanwhile."""
    port = str(running.ports[protocol])
    traffics = [str(model.traffic) for model in served]
    options = ["--protocol", protocol, "--seconds", str(seconds), *mode]
    command = [sys.executable, "-m", "benchmarks.serving.load", port, *traffics, *options]
    before = running.cpu_seconds()
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise MissingError(f"the load failed: {finished.stderr.strip().splitlines()[-1]}")
    point: Point = json.loads(finished.stdout)
    point["seconds"] = seconds
    point["server_cpu"] = running.cpu_seconds() - before
    time.sleep(REST_SECONDS)
    return point


def measure_rate(
    plan: Plan, running: Running, protocol: str, served: Sequence[Served], rate: float
) -> Point:
    seconds = max(plan.seconds, plan.requests / rate)
    return {"rate": rate, **run_load(running, protocol, served, seconds, "--rate", str(rate))}


def measure_contestants(plan: Plan, served: Sequence[Served], measure: Measure) -> list[Row]:
    """Start one contestant after the other, warm it up, and measure it over each of its protocols."""
    bundles = [model.bundle for model in served]
    rows: list[Row] = []
    for key in plan.contestants:
        contestant = CONTESTANTS[key]
        protocols = [name for name in contestant.protocols if name in plan.protocols]
        try:
            with contestant.run(bundles) as running:
                for protocol in protocols:
                    console.log(f"{contestant.name}, {protocol}")
                    run_load(running, protocol, served, WARM_SECONDS, "--rate", str(WARM_RATE))
                    measured = measure(running, protocol)
                    rows.append({"contestant": contestant.name, "protocol": protocol, **measured})
        except MissingError as error:
            if key == "deploy-rnn":
                raise
            rows.append({"contestant": contestant.name, "missing": str(error)})
    return rows


def measure_ladder(plan: Plan, name: str) -> dict[str, Any]:
    """One model at rising rates."""
    served = [prepare(name, plan.files)]

    def measure(running: Running, protocol: str) -> Row:
        at_rate = partial(measure_rate, plan, running, protocol, served)
        return climb(at_rate, plan.rates, search=plan.search)

    return {"rates": plan.rates, "rows": measure_contestants(plan, served, measure)}


def measure_models(plan: Plan) -> dict[str, Any]:
    """Three models at once, at a few rates of all their requests together."""
    served = [prepare(name, plan.files) for name in ("small", "highlight", "large")]

    def measure(running: Running, protocol: str) -> Row:
        at_rate = partial(measure_rate, plan, running, protocol, served)
        return climb(at_rate, plan.models_rates, search=False)

    rows = measure_contestants(replace(plan, protocols=["http"]), served, measure)
    return {"rates": plan.models_rates, "models": [model.name for model in served], "rows": rows}


def measure_cpu(plan: Plan) -> dict[str, Any]:
    """As many requests of a tiny model as a server answers, eight at a time."""
    served = [prepare("tiny", plan.files)]

    def measure(running: Running, protocol: str) -> Row:
        point = run_load(running, protocol, served, plan.seconds, "--calls", str(CALLS))
        return {"points": [point]}

    rows = measure_contestants(plan, served, measure)
    return {"run_ms": measure_run(served[0]), "rows": rows}


def measure_run(served: Served) -> float:
    """Processor milliseconds of a run of one row, alone in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        served.bundle / "native.onnx", options, providers=["CPUExecutionProvider"]
    )
    feeds = [
        {"characters": row, "lengths": [row.shape[1]]} for row in Traffic.load(served.traffic).rows
    ]
    for feed in feeds:
        session.run(["output"], feed)
    started = time.process_time()
    for feed in feeds:
        session.run(["output"], feed)
    return 1e3 * (time.process_time() - started) / len(feeds)


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "lengths": partial(measure_ladder, name="highlight"),
    "whole": partial(measure_ladder, name="whole"),
    "models": measure_models,
    "cpu": measure_cpu,
}


def count_wrong(result: dict[str, Any]) -> int:
    """Answers that were not PyTorch's."""
    points = [
        point
        for row in result["rows"]
        for point in [*row.get("points", []), *row.get("search", [])]
    ]
    return sum(point["wrong"] for point in points)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--rates", nargs="+", type=float, help="requests a second")
    parser.add_argument("--seconds", type=float, help="of each point (default 3)")
    parser.add_argument(
        "--quick", action="store_true", help="two rates, a second each, no search: two minutes"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="gets serving_PART.json of each part"
    )
    parser.add_argument(
        "--files", type=Path, help="folder that keeps models and traffic for the next run"
    )
    return parser.parse_args()


def make_plan(options: argparse.Namespace, files: Path) -> Plan:
    rates = QUICK_RATES if options.quick else RATES
    models_rates = MODELS_RATES[:1] if options.quick else MODELS_RATES
    return Plan(
        contestants=options.contestants,
        protocols=options.protocols,
        rates=options.rates or rates,
        models_rates=options.rates or models_rates,
        search=not options.quick,
        seconds=options.seconds or (1.0 if options.quick else 3.0),
        requests=0 if options.quick else 1000,
        files=files,
    )


def main() -> None:
    options = parse_options()
    wrong = 0
    with TemporaryDirectory() as temporary:
        files = options.files or Path(temporary)
        files.mkdir(parents=True, exist_ok=True)
        plan = make_plan(options, files.absolute())
        for part in options.parts:
            console.log(f"part {part}")
            output = options.output and options.output / f"serving_{part}.json"
            measured = PARTS[part](plan)
            header = {
                "benchmark": f"serving_{part}",
                "seconds": plan.seconds,
                "server": versions(SERVER_PACKAGES),
                "triton": triton_versions(),
            }
            result = publish({**header, **measured}, output)
            wrong += count_wrong(result)
            print(f"\n{TABLES[part](result)}", flush=True)
    if wrong:
        sys.exit(f"{wrong} answers were wrong.")


if __name__ == "__main__":
    main()
