"""Servers simulated: requests of mixed lengths, the batching rule of the server itself, queues, cores that are shared,
replicas that fail.

A machine has cores, which everything that computes on it shares equally: of three that compute on two cores, each gets
two thirds of one. A replica is one process of `deploy-rnn serve` on a machine: an event loop, which reads and writes
requests one after another, and some threads, each of which runs one batch at a time. What a batch is, `choose_rows`
decides, the function that the server uses, by the run times that the server has measured at its start.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from deploy_rnn.serving.scheduling.batching import SECONDS_BESIDES, choose_rows
from deploy_rnn.serving.scheduling.limits import Limits
from deploy_rnn.serving.scheduling.queue import WINDOW

RunSeconds = Callable[[int, int], float]
"""Rows, steps -> seconds of a run on one core."""

NEVER = math.inf


@dataclass(frozen=True)
class Costs:
    """What one request costs, in seconds.

    Attributes:
        loop: processor time in the event loop of the server, for reading and for writing.
        client: processor time of the client, if it is on the same machine; 0 if it is elsewhere.
        wakes: time that passes without any processor time, such as until a thread awakes.
        run_seconds: of a run, as the server has measured it, alone on the machine.
        run_scale: how many times as long a run takes that begins on an idle core, whose caches have something else.
        loop_scale: the same for what the event loop and the client do.
    """

    loop: float
    client: float
    wakes: float
    run_seconds: RunSeconds
    run_scale: float = 1.0
    loop_scale: float = 1.0


@dataclass(frozen=True)
class Fleet:
    """
    Attributes:
        replicas: processes of the server.
        threads: of each, for runs.
        cores: of a machine.
        per_machine: replicas on a machine.
        balance: "turn", each replica in turn; or "fewest", the one with the fewest requests.
    """

    replicas: int = 1
    threads: int = 2
    cores: int = 2
    per_machine: int = 1
    balance: str = "turn"


@dataclass(frozen=True)
class Failure:
    """A replica that ends, with all that it has, and is back some seconds later."""

    at: float
    replica: int
    seconds: float


@dataclass(eq=False)
class Arrival:
    """A request; an `Item` of the batching rule.

    Attributes:
        due: when its client sent it.
        done: when its client had the answer.
        tries: how often it was sent to a replica.
        refused: whether the queue of its replica was full.
    """

    due: float
    steps: int
    rows: int = 1
    key: int = 0
    done: float = NEVER
    tries: int = 0
    refused: bool = False


class Machine:
    """Cores that all tasks share equally; a task never has more than one.

    Attributes:
        busy: seconds that the cores have computed.
        waited: seconds that tasks have waited for a core, those of all tasks added up.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._now = 0.0
        self._left: dict[int, float] = {}
        self._then: dict[int, Callable[[], None]] = {}
        self._owner: dict[int, object] = {}
        self._numbers = count()
        self.busy = 0.0
        self.waited = 0.0

    def start(
        self,
        now: float,
        seconds: float,
        then: Callable[[], None],
        owner: object,
        scale: float = 1.0,
    ) -> None:
        """Begin a task of so many seconds, `scale` times as many if a core is idle; `then` is called at its end."""
        self._advance(now)
        if len(self._left) < self._cores:
            seconds *= scale
        number = next(self._numbers)
        self._left[number] = seconds
        self._then[number] = then
        self._owner[number] = owner

    def drop(self, now: float, owner: object) -> None:
        """End all tasks of an owner, without what was to come then."""
        self._advance(now)
        for number in [number for number, one in self._owner.items() if one is owner]:
            self._remove(number)

    def next_end(self) -> float:
        if not self._left:
            return NEVER
        return self._now + min(self._left.values()) / self._speed

    def finish(self, now: float) -> None:
        """End the tasks that are done by now."""
        self._advance(now)
        done = [number for number, left in self._left.items() if left <= 1e-12]
        for number in done:
            then = self._then[number]
            self._remove(number)
            then()

    @property
    def _speed(self) -> float:
        return min(1.0, self._cores / len(self._left))

    def _advance(self, now: float) -> None:
        if self._left:
            seconds = (now - self._now) * self._speed
            self.busy += seconds * len(self._left)
            self.waited += (now - self._now - seconds) * len(self._left)
            for number in self._left:
                self._left[number] -= seconds
        self._now = now

    def _remove(self, number: int) -> None:
        del self._left[number], self._then[number], self._owner[number]


class Worker:
    """Does one thing after another, each of which takes processor time of a machine."""

    def __init__(self, simulation: "Simulation", machine: Machine) -> None:
        self._simulation = simulation
        self._machine = machine
        self._scale = simulation.costs.loop_scale
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._busy = False

    def do(self, seconds: float, then: Callable[[], None]) -> None:
        self._waiting.append((seconds, then))
        self._next()

    def drop(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self._busy = False
        self._machine.drop(self._simulation.now, self)

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        self._busy = True
        seconds, then = self._waiting.popleft()

        def end() -> None:
            self._busy = False
            then()
            self._next()

        self._machine.start(self._simulation.now, seconds, end, self, self._scale)


class Replica:
    """One process of the server."""

    def __init__(self, simulation: "Simulation", machine: Machine, threads: int) -> None:
        self._simulation = simulation
        self._machine = machine
        self._loop = Worker(simulation, machine)
        self._threads = threads
        self._idle = threads
        self._waiting: list[Arrival] = []
        self.accepted: set[Arrival] = set()
        self.alive = True

    def accept(self, arrival: Arrival) -> None:
        self.accepted.add(arrival)
        loop_seconds = self._simulation.costs.loop / 2
        self._loop.do(loop_seconds, lambda: self._queue(arrival))

    def fail(self) -> list[Arrival]:
        """Lose everything; the requests that had no answer yet."""
        self.alive = False
        self._loop.drop()
        self._machine.drop(self._simulation.now, self)
        lost = list(self.accepted)
        self.accepted.clear()
        self._waiting.clear()
        self._idle = self._threads
        return lost

    def _queue(self, arrival: Arrival) -> None:
        if len(self._waiting) >= self._simulation.limits.max_queue:
            self.accepted.discard(arrival)
            arrival.refused = True
            return
        self._waiting.append(arrival)
        self._run()

    def _run(self) -> None:
        """Give every idle thread a batch."""
        costs = self._simulation.costs
        limits = self._simulation.limits
        while self._idle and self._waiting:
            candidates = self._waiting[:WINDOW]
            chosen = choose_rows(candidates, limits.max_rows, limits.max_waste, costs.run_seconds)
            batch = [candidates[index] for index in chosen]
            for arrival in batch:
                self._waiting.remove(arrival)
            rows = sum(arrival.rows for arrival in batch)
            longest = max(arrival.steps for arrival in batch)
            seconds = costs.run_seconds(rows, longest) + SECONDS_BESIDES
            self._idle -= 1
            self._simulation.runs += 1
            end = self._end_of(batch)
            self._machine.start(self._simulation.now, seconds, end, self, costs.run_scale)

    def _end_of(self, batch: Sequence[Arrival]) -> Callable[[], None]:
        def end() -> None:
            self._idle += 1
            for arrival in batch:
                self._loop.do(self._simulation.costs.loop / 2, self._answer_to(arrival))
            self._run()

        return end

    def _answer_to(self, arrival: Arrival) -> Callable[[], None]:
        def answer() -> None:
            self.accepted.discard(arrival)
            self._simulation.answered(arrival)

        return answer


@dataclass
class Simulation:
    """
    Attributes:
        costs, fleet: see there.
        limits: of the batching rule; those of the server.
        now: seconds since the beginning.
        runs: how many there were.
        arrivals: all requests.
    """

    costs: Costs
    fleet: Fleet
    limits: Limits = field(default_factory=Limits)
    now: float = 0.0
    runs: int = 0
    arrivals: list[Arrival] = field(default_factory=list)

    def __post_init__(self) -> None:
        fleet = self.fleet
        machines = math.ceil(fleet.replicas / fleet.per_machine)
        self.machines = [Machine(fleet.cores) for _ in range(machines)]
        self.replicas = [
            Replica(self, self.machines[number // fleet.per_machine], fleet.threads)
            for number in range(fleet.replicas)
        ]
        # It shares the machine of the first replica, if it takes anything at all.
        self._client = Worker(self, self.machines[0])
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._turn = count()

    def run(
        self,
        rate: float,
        seconds: float,
        lengths: Sequence[int],
        failures: Sequence[Failure] = (),
        seed: int = 0,
    ) -> None:
        """Send requests at random times (Poisson) for some seconds, and go on until the last has its answer."""
        random = np.random.default_rng(seed)
        times = np.cumsum(random.exponential(1 / rate, round(rate * seconds)))
        steps = random.choice(np.asarray(lengths), len(times))
        for due, length in zip(times.tolist(), steps.tolist(), strict=True):
            arrival = Arrival(due, length)
            self.arrivals.append(arrival)
            self._at(due, lambda arrival=arrival: self._send(arrival))  # type: ignore[misc]
        for failure in failures:
            self._at(failure.at, lambda failure=failure: self._fail(failure))  # type: ignore[misc]
        self._go_on()

    def answered(self, arrival: Arrival) -> None:
        """The replica has written an answer."""

        def done() -> None:
            arrival.done = self.now

        self._after_wake(lambda: self._by_client(done))

    def _send(self, arrival: Arrival) -> None:
        self._by_client(lambda: self._after_wake(lambda: self._dispatch(arrival)))

    def _by_client(self, then: Callable[[], None]) -> None:
        if self.costs.client:
            self._client.do(self.costs.client / 2, then)
        else:
            then()

    def _after_wake(self, then: Callable[[], None]) -> None:
        self._at(self.now + self.costs.wakes / 2, then)

    def _dispatch(self, arrival: Arrival) -> None:
        """To a replica that is there; a proxy notices at once that one is not, and takes another."""
        alive = [replica for replica in self.replicas if replica.alive]
        if not alive:
            self._at(self.now + 1.0, lambda: self._dispatch(arrival))
            return
        arrival.tries += 1
        number = next(self._turn) % len(alive)
        if self.fleet.balance == "fewest":
            in_turn = [*alive[number:], *alive[:number]]
            min(in_turn, key=lambda replica: len(replica.accepted)).accept(arrival)
        else:
            alive[number].accept(arrival)

    def _fail(self, failure: Failure) -> None:
        replica = self.replicas[failure.replica]
        for arrival in replica.fail():
            self._dispatch(arrival)

        def recover() -> None:
            replica.alive = True

        self._at(self.now + failure.seconds, recover)

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def _go_on(self) -> None:
        while True:
            next_event = self._events[0][0] if self._events else NEVER
            ends = [machine.next_end() for machine in self.machines]
            next_end = min(ends)
            if next_event == next_end == NEVER:
                return
            if next_event <= next_end:
                self.now = next_event
                heapq.heappop(self._events)[2]()
            else:
                self.now = next_end
                self.machines[ends.index(next_end)].finish(self.now)

    def report(self, since: float = 0.0, until: float = NEVER) -> dict[str, Any]:
        """Percentiles of the latencies of the requests of a time, in milliseconds, and what all of them cost."""
        arrivals = [arrival for arrival in self.arrivals if since <= arrival.due < until]
        answered = [arrival for arrival in arrivals if not arrival.refused]
        milliseconds = [1e3 * (arrival.done - arrival.due) for arrival in answered]
        return {
            **{f"p{share}": float(np.percentile(milliseconds, share)) for share in (50, 95, 99)},
            "cpu_ms": 1e3 * sum(machine.busy for machine in self.machines) / len(self.arrivals),
            "wait_ms": 1e3 * sum(machine.waited for machine in self.machines) / len(self.arrivals),
            "rows": len(self.arrivals) / self.runs,
            "refused": len(arrivals) - len(answered),
            "retried": sum(arrival.tries > 1 for arrival in arrivals),
        }


def simulate(
    costs: Costs,
    fleet: Fleet,
    rate: float,
    seconds: float,
    lengths: Sequence[int],
    failures: Sequence[Failure] = (),
) -> Simulation:
    """A simulation that has run."""
    simulation = Simulation(costs, fleet)
    simulation.run(rate, seconds, lengths, failures)
    return simulation


def capacity(
    costs: Costs,
    fleet: Fleet,
    lengths: Sequence[int],
    p99_ms: float,
    *,
    requests: int = 10_000,
    precision: float = 1.02,
) -> float:
    """The highest rate, of all replicas, at which every request is answered, and 99 of 100 within `p99_ms`."""

    def is_kept(rate: float) -> bool:
        report = simulate(costs, fleet, rate, requests / rate, lengths).report()
        return not report["refused"] and bool(report["p99"] <= p99_ms)

    run = np.mean([costs.run_seconds(1, steps) for steps in lengths])
    machines = math.ceil(fleet.replicas / fleet.per_machine)
    # Without sharing runs; so much is surely possible, if anything is.
    seconds = costs.loop_scale * costs.loop + costs.run_scale * float(run)
    low = 0.25 * machines * fleet.cores / seconds
    if not is_kept(low):
        return 0.0
    high = 1.5 * low
    while is_kept(high):
        low, high = high, 1.5 * high
    while high > precision * low:
        middle = math.sqrt(low * high)
        if is_kept(middle):
            low = middle
        else:
            high = middle
    return low
