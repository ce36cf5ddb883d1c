"""The simulation of servers, against queues whose waiting times are known."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.scale import Assumptions, _row, measured_capacity
from benchmarks.serving.simulation import (
    Costs,
    Failure,
    Fleet,
    Machine,
    Simulation,
    capacity,
    simulate,
)
from deploy_rnn.serving.scheduling.batching import SECONDS_BESIDES
from deploy_rnn.serving.scheduling.limits import Limits

RUN = 0.01
"""Seconds, whatever the rows and steps."""

ONE_CORE = Fleet(threads=1, cores=1)

COSTS = Costs(
    loop=0.0,
    client=0.0,
    wakes=0.0,
    run_seconds=lambda rows, steps: RUN - SECONDS_BESIDES,
)


def run_alone(
    rate: float, fleet: Fleet = ONE_CORE, costs: Costs = COSTS, seconds: float = 150
) -> Simulation:
    """A simulation in which each run has one request."""
    simulation = Simulation(costs, fleet, Limits(max_rows=1))
    simulation.run(rate, seconds, [1])
    return simulation


def mean_wait(simulation: Simulation) -> float:
    return float(np.mean([one.done - one.due for one in simulation.arrivals])) - RUN


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_thread_is_the_queue_of_the_textbook(load: float) -> None:
    """M/D/1: random arrivals, equal times, one server."""
    simulation = run_alone(load / RUN)
    expected = load / (2 * (1 - load)) * RUN
    assert mean_wait(simulation) == pytest.approx(expected, rel=0.1)
    assert simulation.report()["cpu_ms"] == pytest.approx(1e3 * RUN)


def test_replicas_in_turn_wait_less_than_one_of_them_alone() -> None:
    """Each gets every second request, whose arrivals are more regular; the one with the fewest waits least."""
    costs = replace(COSTS, run_seconds=lambda rows, steps: steps * RUN - SECONDS_BESIDES)
    waits = {}
    for balance in ("turn", "fewest"):
        fleet = Fleet(replicas=2, threads=1, cores=1, balance=balance)
        simulation = Simulation(costs, fleet, Limits(max_rows=1))
        simulation.run(0.7 / RUN, 60, [1, 3])
        waits[balance] = mean_wait(simulation)
    alone = Simulation(costs, ONE_CORE, Limits(max_rows=1))
    alone.run(0.35 / RUN, 60, [1, 3])
    assert waits["fewest"] < waits["turn"] < mean_wait(alone)


def test_three_tasks_share_two_cores() -> None:
    machine = Machine(2)
    ended: list[str] = []
    machine.start(0.0, 2.0, lambda: ended.append("long"), "a")
    machine.start(0.0, 1.0, lambda: ended.append("short"), "b")
    machine.start(0.0, 1.0, lambda: ended.append("dropped"), "c")
    assert machine.next_end() == pytest.approx(1.5)  # each has two thirds of a core
    machine.drop(0.75, "c")
    assert machine.next_end() == pytest.approx(1.25)
    machine.finish(1.25)
    assert ended == ["short"]
    assert machine.next_end() == pytest.approx(2.25)
    machine.finish(2.25)
    assert ended == ["short", "long"]
    assert machine.busy == pytest.approx(2.0 + 1.0 + 0.5)
    assert machine.waited == pytest.approx(0.75)  # three on two cores for 0.75 seconds
    assert machine.next_end() == math.inf


def test_what_a_request_alone_takes() -> None:
    costs = replace(COSTS, loop=0.001, client=0.002, wakes=0.004)
    (arrival,) = run_alone(1, costs=costs, seconds=1).arrivals
    assert arrival.done - arrival.due == pytest.approx(RUN + 0.007)


def test_what_begins_on_an_idle_core_takes_longer() -> None:
    costs = replace(COSTS, loop=0.002, loop_scale=1.5, run_scale=2.0)
    (arrival,) = run_alone(1, costs=costs, seconds=1).arrivals
    assert arrival.done - arrival.due == pytest.approx(2 * RUN + 0.003)
    # A core that is never idle has no such costs.
    busy = run_alone(2 / RUN, costs=costs, seconds=5).report()
    assert busy["cpu_ms"] == pytest.approx(1e3 * RUN + 2, rel=0.05)


def test_requests_share_runs_as_in_the_server() -> None:
    """More than one thread could answer one by one: the batching rule is the server's own."""
    report = simulate(COSTS, ONE_CORE, 5 / RUN, 20, [1]).report()
    assert 5 < report["rows"] <= Limits().max_rows
    assert report["refused"] == 0
    unlike = replace(COSTS, run_seconds=lambda rows, steps: rows * steps * RUN)
    assert (
        simulate(unlike, ONE_CORE, 10, 20, [1, 2, 3]).report()["rows"] == 1
    )  # sharing does not pay


def test_a_full_queue_refuses() -> None:
    simulation = Simulation(COSTS, ONE_CORE, Limits(max_rows=1, max_queue=10))
    simulation.run(3 / RUN, 20, [1])
    refused = simulation.report()["refused"]
    assert refused == pytest.approx(len(simulation.arrivals) * 2 / 3, rel=0.05)


def test_a_replica_that_fails_loses_nothing() -> None:
    fleet = Fleet(replicas=2, threads=1, cores=1, balance="fewest")
    simulation = Simulation(COSTS, fleet, Limits(max_rows=1))
    simulation.run(1.6 / RUN, 60, [1], [Failure(20, 0, 5)])
    assert all(math.isfinite(arrival.done) for arrival in simulation.arrivals)
    resent = [arrival for arrival in simulation.arrivals if arrival.tries > 1]
    assert resent
    assert all(arrival.due <= 20 < arrival.done for arrival in resent)
    before = simulation.report(until=20)["p99"]
    # One replica alone gets more than it can answer.
    assert simulation.report(20, 25)["p99"] > 10 * before
    assert simulation.report(50)["p99"] < 2 * before


def test_without_any_replica_requests_wait_for_one() -> None:
    simulation = Simulation(COSTS, ONE_CORE, Limits(max_rows=1))
    simulation.run(10, 10, [1], [Failure(5, 0, 2)])
    assert all(math.isfinite(arrival.done) for arrival in simulation.arrivals)


def test_the_capacity_is_where_the_limit_is_met() -> None:
    limit = 100.0
    rate = capacity(COSTS, ONE_CORE, [1], limit, requests=2000, precision=1.05)

    def p99(rate: float) -> float:
        return float(simulate(COSTS, ONE_CORE, rate, 2000 / rate, [1]).report()["p99"])

    assert p99(rate) <= limit < p99(1.1 * rate)
    assert capacity(COSTS, ONE_CORE, [1], 1e3 * RUN / 2, requests=100) == 0


def test_the_plan_goes_by_what_real_servers_kept_up_with() -> None:
    def point(replicas: int, rate: float, p99: float, wrong: int = 0) -> dict[str, Any]:
        return {
            "replicas": replicas,
            "rate": rate,
            "measured": {"p99": p99, "sent": 10, "right": 10 - wrong},
        }

    points = [point(1, 200, 8), point(1, 500, 20), point(1, 800, 60), point(1, 900, 40)]
    points.append(point(2, 1400, 5))
    assert measured_capacity(points, 50) == 500
    assert measured_capacity(points, 10) == 200
    assert measured_capacity(points, 5) == 0
    assert measured_capacity([point(1, 200, 8), point(1, 500, 20, wrong=1)], 50) == 200


def test_a_row_of_the_plan() -> None:
    assumptions = Assumptions(price=0.5, cores=16, spare=0.1)
    row = _row("requests", 1000, 30, assumptions)
    assert row["replicas"] == 34 + 4  # 33.3 are needed, and a tenth of them spare
    assert (row["cores"], row["machines"]) == (76, 5)
    assert row["dollars"] == 76 * 0.5 * 730
    assert _row("requests", 10, 30, assumptions)["replicas"] == 2
