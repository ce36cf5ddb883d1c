"""What a fleet of servers costs: `python -m benchmarks.scale --output FILE.json` measures, in four minutes.

1. The costs of a request, none of them taken from a latency under load: the run times that the engine measures at its
   start; processor time of a request of a tiny model, many at a time and now and then; how long one takes when it is
   alone.
2. Real servers at several rates, one and two replicas on this machine, and beside each the simulation
   (serving/simulation.py) with those costs.
3. The costs of a chunk of a stream, and the memory of a stream.

`python -m benchmarks.scale --plan FILE.json` simulates, in a few minutes, from what was measured: replicas, machines
and money for 1e3, 1e5 and 1e7 a second, by `Assumptions`, each of which is an option (`--price 0.02`,
`--p99 100`); and a replica that fails.
"""

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import numpy as np
from rich.console import Console

from benchmarks import ROOT
from benchmarks.reporting.machine import publish
from benchmarks.reporting.scale_tables import (
    costs_table,
    failures_table,
    plan_table,
    points_table,
)
from benchmarks.serving.contestants import Running, run_deploy_rnn
from benchmarks.serving.models import Served, prepare
from benchmarks.serving.over_http import request_bytes
from benchmarks.serving.simulation import Costs, Failure, Fleet, capacity, simulate
from benchmarks.serving.streams import CHUNK_BYTES, StreamCosts, measure_streams
from benchmarks.serving.traffic import Traffic
from deploy_rnn.serving.engine.batch_engine import BatchEngine
from deploy_rnn.serving.engine.opening import open_model
from deploy_rnn.serving.engine.run_times import RunTimes
from deploy_rnn.serving.scheduling.batching import SECONDS_BESIDES

FLEETS = {1: Fleet(), 2: Fleet(replicas=2, threads=1, per_machine=2)}
"""Replicas on this machine of two cores: one may use both, two have one each."""
RATES = {1: (200.0, 500.0, 800.0, 1100.0, 1400.0), 2: (200.0, 500.0, 800.0, 1100.0, 1400.0)}
LOW_RATE = 100.0
"""At which runs seldom meet."""
CALLS = 8
"""Requests of the tiny model that are under way at any time."""
TABLE_STEPS = (1, 8, 16, 32, 64, 128, 200)
TABLE_ROWS = (1, 2, 4, 8, 16, 32)
WARM_SECONDS = 1.0
SIMULATED_REQUESTS = 10_000
FAILED_SECONDS = 10.0

console = Console(stderr=True)


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here. Replace them by yours.

    Attributes:
        p99_ms: 99 of 100 requests are to be answered within it, from the first byte read to the last one written.
        price: of a core for an hour, in dollars, on demand.
        cores: of a machine.
        spare: share of the replicas that may be missing at any time: failed, or being replaced; at least one.
        chunks: of a stream, in a second.
    """

    p99_ms: float = 50.0
    price: float = 0.04
    cores: int = 32
    spare: float = 0.05
    chunks: float = 10.0


HOURS = 730
"""Of a month."""
SCALES = (1e3, 1e5, 1e7)


def run_load(
    servers: Sequence[Running], served: Served, seconds: float, *mode: str
) -> dict[str, Any]:
    """What the load reports, and what the servers took and counted meanwhile."""
    ports = ",".join(str(server.ports["http"]) for server in servers)
    before = [_counters(server) for server in servers]
    command = [sys.executable, "-m", "benchmarks.serving.load", ports, str(served.traffic)]
    finished = subprocess.run(
        [*command, "--seconds", str(seconds), *mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    point: dict[str, Any] = json.loads(finished.stdout)
    after = [_counters(server) for server in servers]
    for name in after[0]:
        point[name] = sum(one[name] for one in after) - sum(one[name] for one in before)
    return point


def _counters(server: Running) -> dict[str, float]:
    """Processor seconds of a server, those that its threads waited for a core, its runs, and their seconds."""
    with urlopen(f"http://127.0.0.1:{server.ports['http']}/metrics") as answer:
        text = answer.read().decode()
    found = {"server_cpu": server.cpu_seconds(), "core_wait": server.core_wait_seconds()}
    for name in ("executions", "compute_seconds"):
        values = re.findall(rf"^deploy_rnn_{name}_total\{{.*\}} (\S+)$", text, re.MULTILINE)
        found[name] = sum(map(float, values))
    return found


@contextmanager
def running(served: Served, fleet: Fleet) -> Iterator[list[Running]]:
    with ExitStack() as stack:
        servers = []
        for _ in range(fleet.replicas):
            options = ["--threads", str(fleet.threads)]
            servers.append(stack.enter_context(run_deploy_rnn([served.bundle], options)))
        run_load(servers, served, WARM_SECONDS, "--rate", str(LOW_RATE))
        yield servers


def measure_run_table(served: Served) -> dict[str, dict[str, float]]:
    """Steps -> rows -> seconds of a run on one core, as the engine has measured them at its start."""
    engine = BatchEngine(open_model(served.bundle, "CPUExecutionProvider", None))
    engine.warm_up(side_by_side=True)
    seconds = engine.run_times.seconds
    return {
        str(steps): {str(rows): seconds(rows, steps) for rows in TABLE_ROWS}
        for steps in TABLE_STEPS
    }


def read_run_table(table: dict[str, dict[str, float]]) -> RunTimes:
    return RunTimes(
        {
            int(steps): {int(rows): seconds for rows, seconds in by_rows.items()}
            for steps, by_rows in table.items()
        }
    )


def lengths_of(served: Served) -> list[int]:
    return [row.shape[1] for row in Traffic.load(served.traffic).rows]


def message_bytes(served: Served) -> float:
    """Of a request and its answer, on average, without the header of the answer."""
    traffic = Traffic.load(served.traffic)
    requests = [len(request_bytes(traffic.model, row)) for row in traffic.rows]
    answers = [answer.nbytes for answer in traffic.answers]
    return float(np.mean(requests) + np.mean(answers))


def measure_costs(served: Served, tiny: Served, seconds: float) -> dict[str, Any]:
    """The costs of a request, as `make_costs` reads them."""
    tiny_run = _mean_run(read_run_table(measure_run_table(tiny)), lengths_of(tiny))
    with running(tiny, FLEETS[1]) as servers:
        many = run_load(servers, tiny, seconds, "--calls", str(CALLS))
        alone = run_load(servers, tiny, seconds, "--calls", "1")
        seldom = run_load(servers, tiny, seconds, "--rate", str(LOW_RATE))
    loop = _loop_seconds(many, tiny_run)
    client = many["load_cpu"] / many["sent"]
    wakes = 1e-3 * alone["p50"] - loop - client - tiny_run - SECONDS_BESIDES
    table = measure_run_table(served)
    with running(served, FLEETS[1]) as servers:
        slow = run_load(servers, served, seconds, "--rate", str(LOW_RATE))
    table_run = _mean_run(read_run_table(table), lengths_of(served))
    return {
        "loop": loop,
        "client": client,
        "wakes": max(0.0, wakes),
        "run_scale": max(1.0, slow["compute_seconds"] / slow["executions"] / table_run),
        "loop_scale": max(1.0, _loop_seconds(seldom, tiny_run) / loop),
        "run_table": table,
    }


def _loop_seconds(report: dict[str, Any], run: float) -> float:
    """Processor time of a request besides its run."""
    besides = report["server_cpu"] - SECONDS_BESIDES * report["executions"]
    return float(besides / report["sent"] - run)


def _mean_run(run_times: RunTimes, lengths: Sequence[int]) -> float:
    """Seconds of a run of one row, of these lengths."""
    return float(np.mean([run_times.seconds(1, steps) for steps in lengths]))


def make_costs(measured: dict[str, Any], *, with_client: bool) -> Costs:
    """
    Args:
        with_client: whether the client is on the machine of the server, as it is here.
    """
    return Costs(
        loop=measured["loop"],
        client=measured["client"] if with_client else 0.0,
        wakes=measured["wakes"],
        run_seconds=read_run_table(measured["run_table"]).seconds,
        run_scale=measured["run_scale"],
        loop_scale=measured.get("loop_scale", 1.0),
    )


def measure_points(
    served: Served, measured_costs: dict[str, Any], seconds: float
) -> list[dict[str, Any]]:
    """Real servers beside simulated ones."""
    points: list[dict[str, Any]] = []
    costs = make_costs(measured_costs, with_client=True)
    for replicas, fleet in FLEETS.items():
        with running(served, fleet) as servers:
            for rate in RATES[replicas]:
                console.log(f"{replicas} replicas at {rate:.0f} a second")
                real = run_load(servers, served, seconds, "--rate", str(rate))
                points.append({"replicas": replicas, "rate": rate, "measured": _summary(real)})
    for point in points:
        fleet = FLEETS[point["replicas"]]
        rate = point["rate"]
        simulation = simulate(costs, fleet, rate, SIMULATED_REQUESTS / rate, lengths_of(served))
        point["simulated"] = simulation.report()
    return points


def _summary(real: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a load's report."""
    summary = {name: real[name] for name in ("p50", "p95", "p99", "sent", "right", "overrun")}
    summary["cpu_ms"] = 1e3 * (real["server_cpu"] + real["load_cpu"]) / real["sent"]
    summary["rows"] = real["sent"] / real["executions"]
    summary["wait_ms"] = 1e3 * real["core_wait"] / real["sent"]
    summary["run_ms"] = 1e3 * real["compute_seconds"] / real["executions"]
    return summary


def make_plan(
    measured: dict[str, Any], lengths: Sequence[int], assumptions: Assumptions
) -> dict[str, Any]:
    """Replicas of two cores, machines and money for each of `SCALES`; and what becomes of a replica that fails."""
    costs = make_costs(measured["costs"], with_client=False)
    simulated = capacity(costs, Fleet(), lengths, assumptions.p99_ms)
    # The simulation has less of a tail than a real server.
    rate = min(simulated, measured_capacity(measured["points"], assumptions.p99_ms))
    if not rate:
        raise SystemExit(
            f"no server had a p99 within {assumptions.p99_ms:g} ms; give a larger one."
        )
    at_capacity = simulate(costs, Fleet(), rate, SIMULATED_REQUESTS / rate, lengths).report()
    streams = StreamCosts(**measured["streams"])
    streams_rate = streams.capacity / assumptions.chunks
    messages = {"requests": 1.0, "streams": assumptions.chunks}
    rows = []
    for kind, capacity_of_one in (("requests", rate), ("streams", streams_rate)):
        for scale in SCALES:
            row = _row(kind, scale, capacity_of_one, assumptions)
            row["gigabits"] = 8e-9 * scale * messages[kind] * measured["bytes"][kind]
            rows.append(row)
    return {
        "benchmark": "scale_plan",
        "assumptions": asdict(assumptions),
        "capacity": rate,
        "simulated_capacity": simulated,
        "cores_in_use": rate * at_capacity["cpu_ms"] / 1e3 / Fleet().cores,
        "streams_capacity": streams_rate,
        "rows": rows,
        "failures": [_fail(costs, lengths, rate, replicas) for replicas in (2, 4, 8)],
    }


def measured_capacity(points: Sequence[dict[str, Any]], p99_ms: float) -> float:
    """The highest rate of one real replica up to which 99 of 100 requests were answered within `p99_ms`; 0 if none."""
    highest = 0.0
    for point in points:
        real = point["measured"]
        if point["replicas"] != 1:
            continue
        if real["right"] < real["sent"] or real["p99"] > p99_ms:
            break
        highest = point["rate"]
    return highest


def _row(kind: str, scale: float, capacity: float, assumptions: Assumptions) -> dict[str, Any]:
    """
    Args:
        capacity: of one replica, of two cores.
    """
    needed = math.ceil(scale / capacity)
    spare = max(1, math.ceil(assumptions.spare * needed))
    cores = (needed + spare) * Fleet().cores
    dollars = cores * assumptions.price * HOURS
    return {
        "kind": kind,
        "scale": scale,
        "replicas": needed + spare,
        "spare": spare,
        "cores": cores,
        "machines": math.ceil(cores / assumptions.cores),
        "dollars": dollars,
    }


def _fail(costs: Costs, lengths: Sequence[int], rate: float, replicas: int) -> dict[str, Any]:
    """A fleet of which all but one replica carry the load at its limit, and one of them fails for some seconds."""
    fleet = Fleet(replicas=replicas, balance="fewest")
    begins = FAILED_SECONDS / 2
    ends = begins + FAILED_SECONDS
    failure = Failure(begins, 0, FAILED_SECONDS)
    total = rate * (replicas - 1)
    simulation = simulate(costs, fleet, total, ends + begins, lengths, [failure])
    times = {"before": (0.0, begins), "meanwhile": (begins, ends), "after": (ends, math.inf)}
    reports = {name: simulation.report(*bounds) for name, bounds in times.items()}
    return {
        "replicas": replicas,
        "rate": total,
        **{f"p99_{name}": report["p99"] for name, report in reports.items()},
        "retried": sum(arrival.tries > 1 for arrival in simulation.arrivals),
        "refused": sum(arrival.refused for arrival in simulation.arrivals),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="gets the result as JSON")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="an earlier result to plan by")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each point (default 8)")
    parser.add_argument(
        "--files", type=Path, help="folder that keeps models and traffic for the next run"
    )
    for name, value in asdict(Assumptions()).items():
        option = name.removesuffix("_ms")
        parser.add_argument(f"--{option}", dest=name, type=type(value), default=value)
    return parser.parse_args()


def measure(files: Path, seconds: float) -> dict[str, Any]:
    """All that is measured."""
    served, tiny = prepare("highlight", files), prepare("tiny", files)
    console.log("the costs of a request")
    costs = measure_costs(served, tiny, seconds)
    points = measure_points(served, costs, seconds)
    console.log("streams")
    streams = measure_streams(files, seconds)
    return {
        "benchmark": "scale",
        "seconds": seconds,
        "lengths": lengths_of(served),
        "costs": costs,
        "points": points,
        "streams": asdict(streams),
        "bytes": {"requests": message_bytes(served), "streams": CHUNK_BYTES},
    }


def main() -> None:
    options = parse_options()
    names = asdict(Assumptions())
    assumptions = Assumptions(**{name: getattr(options, name) for name in names})
    if options.plan:
        measured = json.loads(options.plan.read_text(encoding="utf-8"))
        plan = publish(make_plan(measured, measured["lengths"], assumptions), options.output)
        print(f"{plan_table(plan)}\n\n{failures_table(plan)}")
        return
    with TemporaryDirectory() as temporary:
        files = options.files or Path(temporary)
        files.mkdir(parents=True, exist_ok=True)
        result = publish(measure(files.absolute(), options.seconds), options.output)
    print(f"{costs_table(result)}\n\n{points_table(result)}")


if __name__ == "__main__":
    main()
