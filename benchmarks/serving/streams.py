"""What a chunk of a stream costs a server, and how much memory a stream takes."""

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import deploy_rnn
from benchmarks.serving.contestants import Running, run_deploy_rnn
from benchmarks.serving.over_http import Client
from deploy_rnn.export import export_bundle

FEATURES = 40
HIDDEN = 128
LABELS = 32
STEPS = 10
"""Of a chunk: a tenth of a second of speech, at a feature vector each 10 ms."""
STREAMS = 32
"""That send their chunks at a time, each as soon as it has the answer to the one before."""
HELD = 4000
"""Streams that are begun to see how much memory they take."""


@dataclass(frozen=True)
class StreamCosts:
    """
    Attributes:
        cpu_ms: processor time of the server for a chunk.
        capacity: chunks a second, on two cores that the client shares.
        p99_ms: of a chunk at that rate.
        kilobytes: memory that the server takes for a stream.
        state_bytes: of its states.
    """

    cpu_ms: float
    capacity: float
    p99_ms: float
    kilobytes: float
    state_bytes: int


class Listener(nn.Module):
    """Two layers of a GRU over feature vectors, as of speech: x (B, T, 40) -> scores (B, T, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = deploy_rnn.GRU(FEATURES, HIDDEN, 2, batch_first=True)
        self.score = nn.Linear(HIDDEN, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(self.rnn(x)[0])
        return scores


def chunk_bytes(stream: int, *, start: bool) -> bytes:
    """A whole request with one chunk."""
    values = np.zeros((1, STEPS, FEATURES), np.float32)
    parameters = {"sequence_id": stream, "sequence_start": start, "binary_data_output": True}
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": values.shape,
        "parameters": {"binary_data_size": values.nbytes},
    }
    message = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
    header = (
        "POST /v2/models/listener/infer HTTP/1.1",
        "Host: localhost",
        f"Inference-Header-Content-Length: {len(message)}",
        f"Content-Length: {len(message) + values.nbytes}",
    )
    return "\r\n".join(header).encode() + b"\r\n\r\n" + message + values.tobytes()


CHUNK_BYTES = len(chunk_bytes(1_000_000, start=False)) + 4 * STEPS * LABELS
"""Of a chunk and its answer, without the header of the answer."""


class Streams:
    """Streams that each send a chunk as soon as they have the answer to the one before."""

    def __init__(self) -> None:
        self._client = Client(self._answered)
        self._next = [chunk_bytes(1 + stream, start=False) for stream in range(STREAMS)]
        self._sent = [0.0] * STREAMS
        self._until = 0.0
        self._waiting = 0
        self._failed = False
        self._answer: bytes | None = None
        self.milliseconds: list[float] = []

    async def run(self, port: int, seconds: float) -> None:
        await self._client.connect(port, STREAMS)
        self._until = time.perf_counter() + seconds
        for stream in range(STREAMS):
            self._send(stream, chunk_bytes(1 + stream, start=True))
        await self._wait()

    async def begin(self, port: int, count: int) -> None:
        """Begin streams, one after another."""
        answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        client = Client(lambda _, answer: answers.put_nowait(answer))
        await client.connect(port, 1)
        for stream in range(count):
            client.send(stream, chunk_bytes(1_000_000 + stream, start=True))
            _check(await answers.get())
        client.close()

    def close(self) -> None:
        self._client.close()

    def _send(self, stream: int, request: bytes) -> None:
        self._sent[stream] = time.perf_counter()
        self._waiting += 1
        self._client.send(stream, request)

    def _answered(self, stream: int, answer: bytes | None) -> None:
        if not _is_good(answer):
            self._failed = True
            self._answer = answer
            self._until = 0.0
        now = time.perf_counter()
        self.milliseconds.append(1e3 * (now - self._sent[stream]))
        self._waiting -= 1
        if now < self._until:
            self._send(stream, self._next[stream])

    async def _wait(self) -> None:
        while self._waiting:
            await asyncio.sleep(0.005)
        if self._failed:
            _check(self._answer)


def _is_good(answer: bytes | None) -> bool:
    return answer is not None and answer.startswith(b"HTTP/1.1 200")


def _check(answer: bytes | None) -> None:
    if not _is_good(answer):
        raise RuntimeError(f"a chunk was not answered: {answer!r}")


def measure_streams(files: Path, seconds: float) -> StreamCosts:
    """Export the model, serve it, and drive it."""
    bundle = files / "listener"
    if not bundle.exists():
        torch.manual_seed(0)
        example = torch.randn(2, STEPS, FEATURES)
        export_bundle(
            Listener().eval(),
            (example,),
            bundle,
            forms=["scan", "native"],
            streaming=True,
            sizes=(2,),
        )
    with run_deploy_rnn([bundle], ["--max-streams", "10000"]) as server:
        return asyncio.run(_measure(server, seconds))


async def _measure(server: Running, seconds: float) -> StreamCosts:
    port = server.ports["http"]
    streams = Streams()
    before_memory = _resident(server)
    await streams.begin(port, HELD)
    memory = _resident(server) - before_memory
    before = server.cpu_seconds()
    await streams.run(port, seconds)
    cpu = server.cpu_seconds() - before
    streams.close()
    chunks = len(streams.milliseconds)
    return StreamCosts(
        cpu_ms=1e3 * cpu / chunks,
        capacity=chunks / seconds,
        p99_ms=float(np.percentile(streams.milliseconds, 99)),
        kilobytes=memory / HELD / 1024,
        state_bytes=2 * HIDDEN * 4,
    )


def _resident(server: Running) -> int:
    """Bytes of memory of the server's process."""
    status = Path(f"/proc/{server.session}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(kilobytes)
