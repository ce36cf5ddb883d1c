"""An open-loop load: `python -m benchmarks.serving.load PORT RATE SECONDS` sends requests at random times (Poisson).

It does not wait for answers before it sends the next request. A latency runs from when a request was due to the last
byte of its answer, so that a server that stalls is charged for every request that came in the meantime. Prints one JSON
object. Imports no torch: the load takes its time from the same cores as the server.
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
MAX_WAITING = 400
"""Requests without an answer at which a server has failed: the load stops."""


def make_requests(count: int, pad: bool) -> list[bytes]:
    """Whole requests of one row of 1 to 200 steps; with `pad`, each row is padded to 200 and sent with its length."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, LONGEST + 1, count)
    return [_request(random.integers(2, 97, steps), pad) for steps in lengths]


def _request(characters: np.ndarray, pad: bool) -> bytes:
    steps = len(characters)
    tensors = {"characters": characters[None]}
    if pad:
        tensors = {
            "characters": np.pad(characters, (0, LONGEST - steps))[None],
            "lengths": np.array([steps]),
        }
    inputs = [
        {
            "name": name,
            "datatype": "INT64",
            "shape": tensor.shape,
            "parameters": {"binary_data_size": tensor.nbytes},
        }
        for name, tensor in tensors.items()
    ]
    outputs = [{"name": "output", "parameters": {"binary_data": True}}]
    message = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    body = message + b"".join(tensor.tobytes() for tensor in tensors.values())
    header = (
        f"POST {PATH} HTTP/1.1",
        "Host: benchmark",
        f"Inference-Header-Content-Length: {len(message)}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(header).encode() + b"\r\n\r\n" + body


class Connection(asyncio.Protocol):
    """One request at a time: when its answer is complete, the load records it and may use the connection again."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._received = b""
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self._received = b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        header, separator, body = self._received.partition(b"\r\n\r\n")
        if separator and len(body) >= _content_length(header):
            self._load.record(self, header.startswith(b"HTTP/1.1 200"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.record_loss(self)


def _content_length(header: bytes) -> int:
    value = header.lower().partition(b"\r\ncontent-length:")[2]
    return int(value.partition(b"\r\n")[0])


class Load:
    def __init__(self, port: int, requests: list[bytes]) -> None:
        self._port = port
        self._requests = requests
        self._idle: deque[Connection] = deque()
        self.latencies: list[float] = []
        self.waiting = 0
        self.failures = 0

    async def run(self, rate: float, seconds: float) -> None:
        """Send at `rate` a second; then wait for the last answers, for as long again."""
        await self._connect()
        gaps = np.random.default_rng(1).exponential(1 / rate, round(2 * rate * seconds) + 100)
        due = time.perf_counter()
        end = due + seconds
        for number, gap in enumerate(gaps):
            due += gap
            if due > end or not self._idle:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.waiting += 1
            self._idle.popleft().send(self._requests[number % len(self._requests)], due)
        while self.waiting and time.perf_counter() < end + seconds:
            await asyncio.sleep(0.005)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(MAX_WAITING):
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", self._port
            )
            self._idle.append(connection)

    def record(self, connection: Connection, succeeded: bool) -> None:
        """An answer has arrived."""
        self.waiting -= 1
        self.failures += not succeeded
        self.latencies.append(time.perf_counter() - connection.due)
        self._idle.append(connection)

    def record_loss(self, connection: Connection) -> None:
        """A connection was closed; that is a failure only if a request was under way."""
        self.failures += connection not in self._idle


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float, help="requests a second")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--pad", action="store_true", help="pad every row to the longest")
    options = parser.parse_args()
    load = Load(options.port, make_requests(512, options.pad))
    gc.disable()  # a collection would count as latency
    asyncio.run(load.run(options.rate, options.seconds))
    warm_latencies = load.latencies[len(load.latencies) // 10 :]
    percentiles = {}
    if warm_latencies:
        percentiles = {
            f"p{share}": 1e3 * float(np.percentile(warm_latencies, share)) for share in (50, 95, 99)
        }
    lost = load.failures + load.waiting
    print(
        json.dumps(
            {"rate": options.rate, "answers": len(load.latencies), "lost": lost, **percentiles}
        )
    )


if __name__ == "__main__":
    main()
