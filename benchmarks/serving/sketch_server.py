"""A sketch of a fast server, on one page: what is left when everything is left out that a server needs besides speed.

`python -m benchmarks.serving.sketch_server BUNDLE ...` answers the benchmark's requests, rightly. It has no checks, no
limits, no gRPC, no streams, no other inputs, and one bad request ends it. It shows how much faster ours could be:

1. As many runs at a time as there are cores, each on one thread.
2. A run takes the oldest request, and those that wait for the same model and are nearest to it in length, while at most
   WASTE of the run is padding. Nobody waits for company.
3. Bare asyncio: the bytes of a request are cut where they must be, and the loop is woken once for each run.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from deploy_rnn.runtime import usable_cores

MAX_ROWS = 8
WASTE = 0.15


class SketchModel:
    """One graph for one row and one for several, each run by the thread that calls it."""

    def __init__(self, bundle: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self._single, self._shared = (
            onnxruntime.InferenceSession(bundle / file, options, providers=providers)
            for file in ("native.onnx", "scan.onnx")
        )
        self.takes_lengths = len(self._single.get_inputs()) == 2

    def run(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The scores (1, T, labels) of each row (T,)."""
        lengths = np.array([len(row) for row in rows])
        characters = np.zeros((len(rows), lengths.max()), np.int64)
        for index, row in enumerate(rows):
            characters[index, : len(row)] = row
        feeds = {"characters": characters}
        if self.takes_lengths:
            feeds["lengths"] = lengths
        session = self._single if len(rows) == 1 else self._shared
        (scores,) = session.run(["output"], feeds)
        return [scores[index : index + 1, :steps] for index, steps in enumerate(lengths)]


@dataclass(eq=False, slots=True)
class Job:
    model: SketchModel
    row: np.ndarray
    connection: "Connection"


class Runners:
    """Threads that take what waits, and the jobs that wait, the oldest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        for _ in range(usable_cores()):
            threading.Thread(target=self._run, daemon=True).start()

    def add(self, job: Job) -> None:
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                jobs = choose(self._waiting)
                for job in jobs:
                    self._waiting.remove(job)
            scores = jobs[0].model.run([job.row for job in jobs])
            self._loop.call_soon_threadsafe(answer_all, jobs, scores)


def choose(waiting: Sequence[Job]) -> list[Job]:
    """The oldest job, and those of its model that are nearest in length, while padding is below WASTE."""
    oldest = waiting[0]
    waste = WASTE if oldest.model.takes_lengths else 0
    others = [job for job in waiting[1:] if job.model is oldest.model]
    others.sort(key=lambda job: abs(len(job.row) - len(oldest.row)))
    jobs = [oldest]
    steps = longest = len(oldest.row)
    for job in others[: MAX_ROWS - 1]:
        longest = max(longest, len(job.row))
        steps += len(job.row)
        if steps < (1 - waste) * longest * (len(jobs) + 1):
            break
        jobs.append(job)
    return jobs


def answer_all(jobs: Sequence[Job], scores: Sequence[np.ndarray]) -> None:
    for job, row_scores in zip(jobs, scores, strict=True):
        job.connection.answer(row_scores)


class Connection(asyncio.Protocol):
    def __init__(self, models: dict[str, SketchModel], runners: Runners) -> None:
        self._models = models
        self._runners = runners
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:])
        if len(body) < int(headers[b"content-length"]):
            return
        self._received = b""
        length = int(headers[b"inference-header-content-length"])
        (tensor,) = json.loads(body[:length])["inputs"]
        row = np.frombuffer(body, np.int64, tensor["shape"][1], length)
        model = self._models[lines[0].split(b"/")[3].decode()]
        self._runners.add(Job(model, row, self))

    def answer(self, scores: np.ndarray) -> None:
        data = scores.tobytes()
        tensor = (
            f'{{"name":"output","datatype":"FP32","shape":{list(scores.shape)},'
            f'"parameters":{{"binary_data_size":{len(data)}}}}}'
        )
        message = f'{{"outputs":[{tensor}]}}'
        head = (
            "HTTP/1.1 200 OK\r\n"
            f"Inference-Header-Content-Length: {len(message)}\r\n"
            f"Content-Length: {len(message) + len(data)}\r\n\r\n"
        )
        self._transport.write((head + message).encode() + data)


async def serve(bundles: Sequence[Path]) -> None:
    models = {bundle.name: SketchModel(bundle) for bundle in bundles}
    loop = asyncio.get_running_loop()
    runners = Runners(loop)
    server = await loop.create_server(
        lambda: Connection(models, runners), "127.0.0.1", 0, backlog=2048
    )
    port = server.sockets[0].getsockname()[1]
    print(f"HTTP on http://127.0.0.1:{port}, no gRPC", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve([Path(argument) for argument in sys.argv[1:]]))
