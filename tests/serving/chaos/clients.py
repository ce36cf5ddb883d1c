"""Clients of every kind, that compare each answer with PyTorch's and note what became of each request.

What may become of one:

- right: an answer of a version of the model that was live while the request was under way;
- refused: the server said "not now" (503, UNAVAILABLE), or took no connection while it was stopping;
- ended: a stream ended together with the model that began it, or its client took too long, and the server said so;
- missing: the model is not loaded (404), for the one that is loaded and unloaded all the time;
- cut: the client itself ended the connection in the middle.

Anything else is a fault: a wrong answer, another status, a connection that ends without an answer.
"""

import asyncio
import json
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from deploy_rnn.serving.grpc.messages import CLASSES, SERVICE

CUT_SHARE = 0.05
"""Of requests whose client resets its connection, or cancels its call."""

ABANDONED_SHARE = 0.02
"""Of chunks after which a client leaves its stream, and begins it anew under the same name."""

PATIENCE = 120
"""Seconds for one answer: far more than the slowest machine needs, and than the server itself allows."""

TOLERANCE = 1e-4

DATATYPES = {"int64": "INT64", "float32": "FP32"}

REFUSALS = re.compile(
    r"try again later|is stopping|server stopped|is being unloaded|was unloaded before"
)
ENDS = re.compile(r"its model was (replaced|unloaded)|expired after")
NO_CONNECTION = re.compile(r"failed to connect|Connection refused")

Answer = tuple[str, "np.ndarray | None", str]
"""Outcome ("right" if there is an array, which is still to be compared), the array, and what the server said."""


@dataclass(frozen=True)
class Case:
    """Inputs of a model, and the output that each of its versions gives in PyTorch."""

    inputs: Mapping[str, np.ndarray]
    expected: Sequence[np.ndarray]


@dataclass
class Live:
    """Which versions of a model may answer: the one that was loaded last, and the one that is being loaded."""

    possible: set[int] = field(default_factory=lambda: {0})
    begun: list[int] = field(default_factory=list)

    def begin(self, version: int) -> None:
        self.begun.append(version)
        self.possible.add(version)

    def end(self, version: int) -> None:
        self.possible = {version}

    def since_now(self) -> Callable[[], set[int]]:
        """Returns a function: the versions that may have answered between the two calls."""
        possible = set(self.possible)
        position = len(self.begun)
        return lambda: possible | set(self.begun[position:])


@dataclass
class Report:
    """What became of the requests.

    Attributes:
        sent: kind of client -> requests.
        outcomes: (kind of client, outcome) -> requests.
        faults: what no request may come to.
        loads: of models.
        stopping: whether the server has been told to stop.
        began: when, by the clock of `time.monotonic`.
    """

    sent: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    loads: int = 0
    stopping: bool = False
    began: float = field(default_factory=time.monotonic)

    def note(self, kind: str, outcome: str) -> None:
        self.outcomes[kind, outcome] += 1

    def fault(self, kind: str, reason: str) -> None:
        self.outcomes[kind, "FAULT"] += 1
        when = "stopping" if self.stopping else f"at {time.monotonic() - self.began:.1f} s"
        self.faults.append(f"{kind}, {when}: {reason[:300]}")

    def judge(self, kind: str, answer: Answer, case: Case, versions: set[int]) -> set[int]:
        """Note what became of a request; returns the versions that give this answer."""
        outcome, array, said = answer
        if array is None:
            if outcome in ("lost", "wrong"):
                self.fault(kind, f"{outcome}: {said}")
            else:
                self.note(kind, outcome)
            return set()
        fits = {version for version in versions if _equal(array, case.expected[version])}
        if fits:
            self.note(kind, "right")
        else:
            others = [at for at, each in enumerate(case.expected) if _equal(array, each)]
            self.fault(kind, f"wrong: not of {versions}, but of {others}; shape {array.shape}")
        return fits


def _equal(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and np.allclose(found, expected, atol=TOLERANCE)


class Connection:
    """An HTTP connection, which is kept alive.

    Attributes:
        answers: how many came over it.
    """

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.answers = 0

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        return self._streams

    async def ask(
        self, path: str, body: bytes = b"", header_length: int | None = None, method: str = "POST"
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the answer.

        Raises:
            OSError, IncompleteReadError: the connection ended first.
        """
        reader, writer = await self.open()
        writer.write(request_bytes(path, body, header_length, method))
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        content = await reader.readexactly(int(headers["content-length"]))
        self.answers += 1
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), headers, content

    async def cut(self, data: bytes) -> None:
        """Send the beginning of a request, and reset the connection."""
        with suppress(OSError):
            _, writer = await self.open()
            writer.write(data)
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        self._streams = None
        self.answers = 0

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None
        self.answers = 0


def request_bytes(
    path: str, body: bytes = b"", header_length: int | None = None, method: str = "POST"
) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    if header_length is not None:
        head += f"Inference-Header-Content-Length: {header_length}\r\n"
    return f"{head}\r\n".encode() + body


def http_body(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], *, binary: bool
) -> tuple[bytes, int | None]:
    """A request's body, and the length of its JSON if bytes follow that."""
    tensors = []
    for name, array in inputs.items():
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": array.shape,
        }
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    fields = {"inputs": tensors, "parameters": {**parameters, "binary_data_output": binary}}
    text = json.dumps(fields).encode()
    if not binary:
        return text, None
    return text + b"".join(array.tobytes() for array in inputs.values()), len(text)


def http_answer(status: int, headers: Mapping[str, str], content: bytes) -> Answer:
    if status == 200:
        return "right", _http_output(headers, content), ""
    said = f"{status} {content.decode(errors='replace')}"
    if status == 503:
        return "refused", None, said
    if status == 404 and "is not loaded" in said:
        return "missing", None, said
    if status == 400 and ENDS.search(said):
        return "ended", None, said
    return "wrong", None, said


def _http_output(headers: Mapping[str, str], content: bytes) -> np.ndarray:
    """The first output of an answer."""
    length = int(headers.get("inference-header-content-length", len(content)))
    output = json.loads(content[:length])["outputs"][0]
    if "data" in output:
        return np.array(output["data"], np.float32).reshape(output["shape"])
    size = output["parameters"]["binary_data_size"]
    return np.frombuffer(content[length : length + size], np.float32).reshape(output["shape"])


def grpc_message(
    model: str, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any]
) -> Any:
    message = CLASSES["ModelInferRequest"](model_name=model)
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    for name, value in parameters.items():
        if isinstance(value, bool):
            message.parameters[name].bool_param = value
        else:
            message.parameters[name].int64_param = value
    return message


def grpc_output(response: Any) -> np.ndarray:
    shape = response.outputs[0].shape
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(shape)


def grpc_error(error: grpc.aio.AioRpcError, stopping: bool) -> Answer:
    said = f"{error.code().name} {error.details()}"
    refused_here = REFUSALS.search(said) or (stopping and NO_CONNECTION.search(said))
    if error.code() is grpc.StatusCode.UNAVAILABLE and refused_here:
        return "refused", None, said
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT and ENDS.search(said):
        return "ended", None, said
    if error.code() is grpc.StatusCode.NOT_FOUND and "is not loaded" in said:
        return "missing", None, said
    return "lost" if error.code() is grpc.StatusCode.UNAVAILABLE else "wrong", None, said


@dataclass
class Server:
    """What the clients need to know of a server.

    Attributes:
        http, grpc: addresses.
        channel: to the second one.
        live: model -> the versions that may answer.
        report: where the clients note what they find.
    """

    http: str
    grpc: str
    channel: grpc.aio.Channel
    live: Mapping[str, Live]
    report: Report

    def method(self, name: str, *, streaming: bool = False) -> Any:
        make = self.channel.stream_stream if streaming else self.channel.unary_unary
        request = "ModelInferRequest" if streaming else f"{name}Request"
        return make(
            f"/{SERVICE}/{name}",
            request_serializer=CLASSES[request].SerializeToString,
            response_deserializer=CLASSES[f"{name}Response"].FromString,
        )

    async def ask_http(
        self, connection: Connection, model: str, body: bytes, length: int | None
    ) -> Answer:
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await connection.ask(f"/v2/models/{model}/infer", body, length)
        except TimeoutError:
            connection.close()
            return "lost", None, f"no answer within {PATIENCE} s"
        except (OSError, asyncio.IncompleteReadError) as error:
            # What waits for a server to accept it is refused by the system once the server stops to listen.
            never_accepted = self.report.stopping and not connection.answers
            connection.close()
            outcome = "refused" if never_accepted else "lost"
            return outcome, None, f"{type(error).__name__}: {error}"
        return http_answer(*answer)

    async def ask_grpc(self, message: Any) -> Answer:
        try:
            response = await self.method("ModelInfer")(message, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            return grpc_error(error, self.report.stopping)
        return "right", grpc_output(response), ""


Going = Callable[[], bool]
"""Whether a client goes on."""


async def rows_over_http(
    server: Server, going: Going, rng: random.Random, model: str, cases: Sequence[Case], kind: str
) -> None:
    """One request after the other, some of them cut off."""
    report = server.report
    connection = Connection(server.http)
    while going():
        case = rng.choice(cases)
        body, length = http_body(case.inputs, {}, binary=rng.random() < 0.7)
        report.sent[kind] += 1
        if rng.random() < CUT_SHARE:
            data = request_bytes(f"/v2/models/{model}/infer", body, length)
            await connection.cut(data[: rng.randint(1, len(data))])
            report.note(kind, "cut")
            continue
        versions = server.live[model].since_now()
        answer = await server.ask_http(connection, model, body, length)
        report.judge(kind, answer, case, versions())
        if report.stopping and answer[0] != "right":
            break
        if answer[0] == "missing":
            await asyncio.sleep(0.05)
    connection.close()


async def rows_over_grpc(
    server: Server, going: Going, rng: random.Random, model: str, cases: Sequence[Case], kind: str
) -> None:
    report = server.report
    while going():
        case = rng.choice(cases)
        message = grpc_message(model, case.inputs, {})
        report.sent[kind] += 1
        if rng.random() < CUT_SHARE:
            call = server.method("ModelInfer")(message, timeout=PATIENCE)
            await asyncio.sleep(0)
            call.cancel()
            report.note(kind, "cut")
            continue
        versions = server.live[model].since_now()
        answer = await server.ask_grpc(message)
        report.judge(kind, answer, case, versions())
        if report.stopping and answer[0] != "right":
            break


@dataclass
class Names:
    """The ids of a client's streams: none that another client uses."""

    client: int
    count: int = 0

    def next(self) -> int:
        self.count += 1
        return (self.client << 32) + self.count


def chunks_of(case: Case, rng: random.Random) -> list[Case]:
    steps = case.inputs["input"].shape[1]
    edges = sorted({0, steps, *(rng.randint(1, steps) for _ in range(3))})
    chunks = []
    for start, stop in pairwise(edges):
        inputs = {"input": np.ascontiguousarray(case.inputs["input"][:, start:stop])}
        expected = [array[:, start:stop] for array in case.expected]
        chunks.append(Case(inputs, expected))
    return chunks


def stream_parameters(name: int, number: int, count: int) -> dict[str, Any]:
    return {
        "sequence_id": name,
        "sequence_start": number == 0,
        "sequence_end": number == count - 1,
    }


async def chunks_one_by_one(
    server: Server,
    going: Going,
    rng: random.Random,
    cases: Sequence[Case],
    names: Names,
    grpc_share: float,
    kind: str,
) -> None:
    """Streams whose chunks go over HTTP and gRPC in turns; some are left, and begun anew by their name."""
    report = server.report
    connection = Connection(server.http)
    name = names.next()
    while going():
        chunks = chunks_of(rng.choice(cases), rng)
        versions = server.live["stream"].since_now()
        fits: set[int] | None = None
        for number, chunk in enumerate(chunks):
            parameters = stream_parameters(name, number, len(chunks))
            report.sent[kind] += 1
            if rng.random() < grpc_share:
                message = grpc_message("stream", chunk.inputs, parameters)
                answer = await server.ask_grpc(message)
            else:
                body, length = http_body(chunk.inputs, parameters, binary=rng.random() < 0.7)
                if rng.random() < CUT_SHARE:
                    data = request_bytes("/v2/models/stream/infer", body, length)
                    await connection.cut(data[: rng.randint(1, len(data))])
                    report.note(kind, "cut")
                    # The chunk may still arrive; it must not find a new stream of this name.
                    name = names.next()
                    break
                answer = await server.ask_http(connection, "stream", body, length)
            # All chunks are answered by the version that answered the first.
            fits = report.judge(kind, answer, chunk, versions() if fits is None else fits)
            if not fits or rng.random() < ABANDONED_SHARE:
                break
        if report.stopping and not fits:
            break
    connection.close()


async def chunks_in_a_call(
    server: Server,
    going: Going,
    rng: random.Random,
    cases: Sequence[Case],
    names: Names,
    kind: str,
) -> None:
    """Streams over streaming calls of gRPC: all chunks are sent before the first is answered."""
    report = server.report
    while going():
        calls = [chunks_of(rng.choice(cases), rng) for _ in range(rng.randint(1, 3))]
        messages = []
        expected: list[tuple[Case, int]] = []
        for call_number, chunks in enumerate(calls):
            name = names.next()
            for number, chunk in enumerate(chunks):
                parameters = stream_parameters(name, number, len(chunks))
                messages.append(grpc_message("stream", chunk.inputs, parameters))
                expected.append((chunk, call_number))
        report.sent[kind] += len(messages)
        versions = server.live["stream"].since_now()
        fits: dict[int, set[int]] = {}
        answered = 0
        cut_after = rng.randrange(len(messages)) if rng.random() < CUT_SHARE else None
        call = server.method("ModelStreamInfer", streaming=True)(_each(messages), timeout=PATIENCE)
        try:
            async for answer in call:
                if answered == cut_after:
                    call.cancel()
                    break
                chunk, stream = expected[answered]
                before = fits.get(stream, versions())
                fits[stream] = report.judge(kind, streamed_answer(answer), chunk, before)
                answered += 1
            error: Answer = ("lost", None, "the call ended before all was answered")
        except asyncio.CancelledError:
            if cut_after is None:
                raise
        except grpc.aio.AioRpcError as raised:
            error = grpc_error(raised, report.stopping)
            # So grpc.aio calls it if a call is refused while it is sending: the status is lost to it.
            if report.stopping and not answered and raised.details() == "Internal error from Core":
                error = ("refused", None, "")
        for _ in range(len(messages) - answered):
            if cut_after is not None:
                report.note(kind, "cut")
            else:
                report.judge(kind, error, expected[answered][0], set())
        if report.stopping and answered < len(messages):
            break


async def _each(messages: Sequence[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


def streamed_answer(answer: Any) -> Answer:
    said = answer.error_message
    if not said:
        return "right", grpc_output(answer.infer_response), ""
    if ENDS.search(said):
        return "ended", None, said
    return "refused" if REFUSALS.search(said) else "wrong", None, said


async def half_requests(server: Server, going: Going, rng: random.Random, kind: str) -> None:
    """Sends the beginning of a request, waits for a while, and leaves in one way or the other."""
    data = request_bytes("/v2/models/tagger/infer", b'{"inputs": []}')
    while going():
        connection = Connection(server.http)
        server.report.sent[kind] += 1
        beginning = data[: rng.randint(1, len(data) - 1)]
        if rng.random() < 0.5:
            await connection.cut(beginning)
        else:
            with suppress(OSError):
                _, writer = await connection.open()
                writer.write(beginning)
                await asyncio.sleep(rng.random())
            connection.close()
        server.report.note(kind, "cut")
        await asyncio.sleep(0.05)
        if server.report.stopping:
            break


async def watch(server: Server, going: Going) -> None:
    """What an operator's tools ask all the time."""
    kind = "watching"
    connection = Connection(server.http)
    while going() and not server.report.stopping:
        for method, path in (("GET", "/v2/health/live"), ("GET", "/metrics"), ("POST", INDEX)):
            server.report.sent[kind] += 1
            try:
                status, _, content = await connection.ask(path, method=method)
            except (OSError, asyncio.IncompleteReadError) as error:
                connection.close()
                if server.report.stopping:
                    server.report.note(kind, "refused")
                else:
                    server.report.fault(kind, f"lost: {type(error).__name__}: {error}")
                continue
            if status == 200:
                server.report.note(kind, "right")
            else:
                server.report.fault(kind, f"wrong: {status} {content!r}")
        await asyncio.sleep(0.5)
    connection.close()


INDEX = "/v2/repository/index"

Swap = Callable[[str, int], Awaitable[None]]
"""Model, version: puts that version of its bundle in the place of the other."""


async def replace_models(server: Server, going: Going, swap: Swap) -> None:
    """Replace `tagger` and `stream` by their other version all the time."""
    kind = "replacing"
    connection = Connection(server.http)
    while going() and not server.report.stopping:
        for model in ("tagger", "stream"):
            live = server.live[model]
            (version,) = live.possible
            live.begin(1 - version)
            await swap(model, 1 - version)
            server.report.sent[kind] += 1
            path = f"/v2/repository/models/{model}/load"
            if not await _operate(server, connection, path, kind):
                break
            live.end(1 - version)
            server.report.loads += 1
        await asyncio.sleep(1)
    connection.close()


async def load_and_unload(server: Server, going: Going, rng: random.Random, model: str) -> None:
    """Load and unload a model all the time, over gRPC and HTTP."""
    kind = "unloading"
    connection = Connection(server.http)
    while going() and not server.report.stopping:
        for operation in ("unload", "load"):
            server.report.sent[kind] += 1
            path = f"/v2/repository/models/{model}/{operation}"
            if not await _operate(server, connection, path, kind):
                break
            server.report.loads += operation == "load"
            await asyncio.sleep(rng.random())
    connection.close()


async def _operate(server: Server, connection: Connection, path: str, kind: str) -> bool:
    """Load or unload; returns whether that was done."""
    report = server.report
    try:
        status, _, content = await connection.ask(path)
    except (OSError, asyncio.IncompleteReadError) as error:
        connection.close()
        if report.stopping:
            report.note(kind, "refused")
        else:
            report.fault(kind, f"lost: {type(error).__name__}: {error}")
        return False
    if status == 200:
        report.note(kind, "right")
    elif status == 503 and report.stopping:
        report.note(kind, "refused")
    else:
        report.fault(kind, f"wrong: {path} {status} {content!r}")
    return status == 200


async def crowd(
    server: Server,
    clients: int,
    seed: int,
    going: Going,
    cases: Mapping[str, Sequence[Case]],
    swap: Swap,
) -> None:
    """All kinds of clients at once."""
    tasks = [
        replace_models(server, going, swap),
        load_and_unload(server, going, random.Random(seed), "other"),
        watch(server, going),
    ]
    for number in range(clients):
        rng = random.Random(f"{seed} {number}")
        names = Names((seed << 16) + number + 1)
        client: Awaitable[None]
        if number % 10 < 3:
            client = rows_over_http(server, going, rng, "tagger", cases["tagger"], "rows, HTTP")
        elif number % 10 < 5:
            client = rows_over_grpc(server, going, rng, "tagger", cases["tagger"], "rows, gRPC")
        elif number % 10 < 7:
            client = chunks_one_by_one(
                server, going, rng, cases["stream"], names, 0.3, "chunks, HTTP and gRPC"
            )
        elif number % 10 == 7:
            client = chunks_in_a_call(
                server, going, rng, cases["stream"], names, "chunks, streaming calls"
            )
        elif number % 10 == 8:
            client = rows_over_http(server, going, rng, "other", cases["other"], "rows, unloaded")
        else:
            client = half_requests(server, going, rng, "half requests")
        tasks.append(client)
    await asyncio.gather(*tasks)


@dataclass(frozen=True)
class Usage:
    """What a process holds: MB in memory, open files, threads."""

    memory: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        memory, threads = (
            int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
            for name in ("VmRSS", "Threads")
        )
        return cls(memory / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())), threads)
