"""An open-loop load: `python -m benchmarks.serving.load PORT RATE SECONDS` asks at random times (Poisson),
whatever the answers do.

A latency runs from when a request should have been sent to the last byte of its answer, so that a server that stalls
is charged for all who came meanwhile. Prints one JSON object. Imports no torch: its work is taken from the same cores.
"""

import argparse
import asyncio
import gc
import json
import time
from collections import deque

import numpy as np

PATH = "/v2/models/highlight/infer"
LONGEST = 200
MOST_WAITING = 400
"""Requests without an answer at which a server has lost: the load stops."""


def bodies(count: int, pad: bool) -> list[bytes]:
    """Whole requests of one row of 1 to 200 steps; `pad`: each row filled up to 200, with its length."""
    random = np.random.default_rng(0)
    return [_request(random.integers(2, 97, steps), pad) for steps in random.integers(1, LONGEST + 1, count)]


def _request(characters: np.ndarray, pad: bool) -> bytes:
    sent = np.pad(characters, (0, LONGEST - len(characters) if pad else 0))
    tensors = {"characters": sent[None], **({"lengths": np.array([len(characters)])} if pad else {})}
    inputs = [
        {"name": name, "datatype": "INT64", "shape": each.shape, "parameters": {"binary_data_size": each.nbytes}}
        for name, each in tensors.items()
    ]
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "output", "parameters": {"binary_data": True}}]}).encode()
    body = head + b"".join(each.tobytes() for each in tensors.values())
    lines = (
        f"POST {PATH} HTTP/1.1",
        "Host: benchmark",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection(asyncio.Protocol):
    """One request at a time; when its answer is whole, it is noted and the connection is idle again."""

    def __init__(self, load: "Load") -> None:
        self._load, self._data, self.due = load, b"", 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due, self._data = due, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]):
            self._load.answered(self, head.startswith(b"HTTP/1.1 200"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self)


class Load:
    def __init__(self, port: int, requests: list[bytes]) -> None:
        self._port, self._requests = port, requests
        self._idle: deque[Connection] = deque()
        self.latencies: list[float] = []
        self.waiting = self.failures = 0

    async def run(self, rate: float, seconds: float) -> None:
        """Send at `rate` a second; wait for the last answers for as long as the load lasted."""
        loop, random = asyncio.get_running_loop(), np.random.default_rng(1)
        for _ in range(MOST_WAITING):
            self._idle.append((await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port))[1])
        due = time.perf_counter()
        end = due + seconds
        for number, gap in enumerate(random.exponential(1 / rate, round(2 * rate * seconds) + 100)):
            due += gap
            if due > end or not self._idle:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.waiting += 1
            self._idle.popleft().send(self._requests[number % len(self._requests)], due)
        while self.waiting and time.perf_counter() < end + seconds:
            await asyncio.sleep(0.005)

    def answered(self, connection: Connection, good: bool) -> None:
        self.waiting -= 1
        self.failures += not good
        self.latencies.append(time.perf_counter() - connection.due)
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self.failures += connection not in self._idle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float, help="requests a second")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--pad", action="store_true", help="fill every row up to the longest")
    options = parser.parse_args()
    load = Load(options.port, bodies(512, options.pad))
    gc.disable()
    asyncio.run(load.run(options.rate, options.seconds))
    warm = load.latencies[len(load.latencies) // 10 :]
    percentiles = {f"p{at}": 1e3 * float(np.percentile(warm, at)) for at in (50, 95, 99)} if warm else {}
    lost = load.failures + load.waiting
    print(json.dumps({"rate": options.rate, "answers": len(load.latencies), "lost": lost, **percentiles}))


if __name__ == "__main__":
    main()
