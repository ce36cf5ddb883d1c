"""The load: `python -m benchmarks.serving.load PORT --rate 400 --seconds 5 TRAFFIC.npz ...`; prints one JSON object.

With `--rate`, requests are sent at random times (Poisson), whether or not earlier ones have been answered: an open
loop. A latency runs from when a request was due to the last byte of its answer, so that a server that stalls is charged
for every request that came in the meantime. With `--calls N` instead, N requests are under way at any time.

Each request is of one of the traffics, at random. Every answer is kept, and compared with PyTorch's after the last one
has come, so that comparing takes no time from the server. Imports no torch: the load has the same cores as the server.
"""

import argparse
import asyncio
import gc
import json
import select
import selectors
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import over_grpc, over_http
from benchmarks.serving.traffic import FailedError, Traffic, difference

PROTOCOLS: dict[str, type[Any]] = {"http": over_http.Client, "grpc": over_grpc.Client}
MAX_WAITING = 400
"""Requests without an answer at which a server has failed: the load stops."""
VERDICTS = ("right", "wrong", "failed", "lost")
"""As PyTorch's; not as PyTorch's; an error of the server; no answer."""
LAST_ANSWERS_SECONDS = 2.0
"""How long the load waits for the answers to the last requests."""


class PreciseSelector(selectors.DefaultSelector):
    """Wakes up when it should: Python's epoll rounds up to whole milliseconds, which would count as latency."""

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            select.select([self], [], [], timeout)
            timeout = 0
        return super().select(timeout)


@dataclass(slots=True)
class Call:
    """One request: which, when it was due and done (in seconds), and its answer as it came."""

    traffic: int
    row: int
    due: float
    done: float = 0.0
    answer: bytes | None = None


class Load:
    def __init__(self, protocol: str, traffics: list[Traffic]) -> None:
        self._protocol = PROTOCOLS[protocol]
        self._clients: list[Any] = []
        self._traffics = traffics
        self._requests = [
            [self._protocol.prepare(traffic.model, row) for row in traffic.rows]
            for traffic in traffics
        ]
        self._random = np.random.default_rng(1)
        self._choices = self._choose()
        self.calls: list[Call] = []
        self.waiting = 0
        self.overrun = False
        self.cpu = 0.0
        self._closed_until = 0.0
        self._error = ""
        self._worst = 0.0

    def _choose(self) -> Iterator[tuple[int, int]]:
        """Which traffic and which row comes next; the same in every run."""
        random = np.random.default_rng(2)
        number = 0
        while True:
            for traffic in random.integers(0, len(self._traffics), 1024).tolist():
                yield traffic, number % len(self._requests[traffic])
                number += 1

    async def run(self, ports: Sequence[int], rate: float, seconds: float) -> None:
        """Send at `rate` a second, to each port in turn; then wait for the last answers."""
        await self._connect(ports, MAX_WAITING)
        started = time.process_time()
        gaps = self._random.exponential(1 / rate, round(2 * rate * seconds) + 100)
        times = np.cumsum(gaps)
        begin = asyncio.get_running_loop().time()
        self._send_due((begin + times[times < seconds])[::-1].tolist())
        await asyncio.sleep(seconds)
        await self._wait()
        self.cpu = time.process_time() - started

    def _send_due(self, dues: list[float]) -> None:
        """Send all that is due; `dues` is emptied from its end."""
        loop = asyncio.get_running_loop()
        while dues and dues[-1] <= loop.time():
            if self.waiting >= MAX_WAITING:
                self.overrun = True
                return
            self._send(dues.pop())
        if dues:
            loop.call_at(dues[-1], self._send_due, dues)

    async def run_closed(self, ports: Sequence[int], calls: int, seconds: float) -> None:
        """Keep `calls` requests under way."""
        await self._connect(ports, calls)
        started = time.process_time()
        now = asyncio.get_running_loop().time()
        self._closed_until = now + seconds
        for _ in range(calls):
            self._send(now)
        await asyncio.sleep(seconds)
        await self._wait()
        self.cpu = time.process_time() - started

    def close(self) -> None:
        for client in self._clients:
            client.close()

    async def _connect(self, ports: Sequence[int], calls: int) -> None:
        for port in ports:
            client = self._protocol(self._record)
            await client.connect(port, calls)
            self._clients.append(client)

    async def _wait(self) -> None:
        end = time.perf_counter() + LAST_ANSWERS_SECONDS
        while self.waiting and time.perf_counter() < end:
            await asyncio.sleep(0.005)

    def _send(self, due: float) -> None:
        traffic, row = next(self._choices)
        number = len(self.calls)
        self.calls.append(Call(traffic, row, due))
        self.waiting += 1
        client = self._clients[number % len(self._clients)]
        client.send(number, self._requests[traffic][row])

    def _record(self, number: int, answer: bytes | None) -> None:
        """An answer has arrived, or will not come any more."""
        now = asyncio.get_running_loop().time()
        call = self.calls[number]
        call.done = now
        call.answer = answer
        self.waiting -= 1
        if now < self._closed_until:
            self._send(now)

    def report(self) -> dict[str, Any]:
        """What came of all calls, and the latencies of each model."""
        verdicts = Counter(self._judge(call) for call in self.calls)
        answered = [call for call in self.calls if call.answer is not None]
        models = {}
        for index, traffic in enumerate(self._traffics):
            calls = [call for call in answered if call.traffic == index]
            models[traffic.model] = percentiles(calls)
        return {
            "sent": len(self.calls),
            **{verdict: verdicts[verdict] for verdict in VERDICTS},
            "error": self._error,
            "difference": self._worst,
            "overrun": self.overrun,
            "load_cpu": self.cpu,
            **percentiles(answered),
            "models": models,
        }

    def _judge(self, call: Call) -> str:
        if call.answer is None:
            return "lost"
        try:
            answer = self._protocol.read(call.answer)
        except FailedError as failure:
            self._error = str(failure)
            return "failed"
        largest = difference(answer, self._traffics[call.traffic].answers[call.row])
        self._worst = max(self._worst, largest)
        return "right" if largest <= 1 else "wrong"


def percentiles(calls: list[Call]) -> dict[str, float]:
    """The 50th, 95th and 99th of the latencies in milliseconds; empty without calls."""
    if not calls:
        return {}
    milliseconds = [1e3 * (call.done - call.due) for call in calls]
    return {f"p{share}": float(np.percentile(milliseconds, share)) for share in (50, 95, 99)}


def parse_ports(text: str) -> list[int]:
    return [int(port) for port in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "ports", type=parse_ports, metavar="PORT[,PORT...]", help="each gets a request in turn"
    )
    parser.add_argument("traffics", type=Path, nargs="+", metavar="TRAFFIC.npz")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="http")
    parser.add_argument("--seconds", type=float, required=True)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--rate", type=float, help="requests a second")
    mode.add_argument("--calls", type=int, help="requests under way at any time")
    options = parser.parse_args()
    load = Load(options.protocol, [Traffic.load(path) for path in options.traffics])
    gc.disable()  # a collection would count as latency
    loop = asyncio.SelectorEventLoop(PreciseSelector())
    if options.rate:
        loop.run_until_complete(load.run(options.ports, options.rate, options.seconds))
    else:
        loop.run_until_complete(load.run_closed(options.ports, options.calls, options.seconds))
    json.dump(load.report(), sys.stdout)


if __name__ == "__main__":
    main()
