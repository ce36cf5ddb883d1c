"""Requests that are answered directly, without a task: the answer is that of the application, whatever they are."""

import gc
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_rnn.serving.protocol.access_log import AccessLog
from deploy_rnn.serving.protocol.deliveries import Delivery
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest.connection import Connection
from deploy_rnn.serving.rest.direct import (
    MAX_KNOWN_BYTES,
    MAX_KNOWN_HEADS,
    KnownHead,
    KnownHeads,
)
from deploy_rnn.serving.rest.exchange import Exchange
from deploy_rnn.serving.rest.infer import InferApp, Inferring
from deploy_rnn.serving.server import Server
from deploy_rnn.serving.settings import Settings
from tests.serving.connecting import connect

INPUT = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
JSON = json.dumps({"inputs": [INPUT]}).encode()
PATH = "/v2/models/sum/infer"
BINARY = json.dumps(
    {
        "id": "a",
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [1, 2],
                "parameters": {"binary_data_size": 8},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
).encode()
MANY = json.dumps({"inputs": [{**INPUT, "shape": [1, 3000], "data": [1] * 3000}]}).encode()


def request(body: bytes = JSON, *headers: str, path: str = PATH, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: localhost", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


@pytest.fixture
def repository(sum_folder: Path, load_repository: Callable[..., Any]) -> Iterator[Repository]:
    with load_repository(sum_folder) as repository:
        yield repository


@pytest.fixture(scope="module")
def two_servers(
    sum_folder: Path, load_repository: Callable[..., Any], run_server: Callable[..., Any]
) -> Iterator[tuple[Server, Server]]:
    """One that answers directly where it may, and one that never does, since it has a log of accesses."""
    with ExitStack() as stack:
        servers = []
        for log in (None, AccessLog("json", lambda line: None)):
            repository = stack.enter_context(load_repository(sum_folder))
            settings = Settings(max_json_bytes=100_000)
            servers.append(stack.enter_context(run_server(repository, settings, log)))
        yield servers[0], servers[1]


def ask(server: Server, sent: bytes) -> bytes:
    """All that comes back, without the time of day."""
    with connect(server) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        answers = b""
        while piece := client.recv(65536):
            answers += piece
    lines = answers.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.startswith(b"date: "))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(), 200),
        (request(path="/v2/models/sum/versions/1/infer"), 200),
        (request(version="1.0"), 200),
        (request(JSON, "Connection: close"), 200),
        (request(BINARY + bytes(8), f"Inference-Header-Content-Length: {len(BINARY)} "), 200),
        (request() * 3, 200),
        (request(MANY, "Accept-Encoding: gzip"), 200),
        (request(gzip.compress(JSON), "Content-Encoding: gzip"), 200),
        (request(JSON, "Origin: http://localhost"), 200),
        (request(JSON, "Origin: http://example.com"), 403),
        (request().replace(b"localhost", b"example.com"), 403),
        (request().replace(b"Host: localhost\r\n", b""), 400),
        (request(b"{"), 400),
        (request(BINARY, f"Inference-Header-Content-Length: {len(BINARY)}"), 400),
        (request(JSON.replace(b"FP32", b"FP64")), 400),
        (request(path="/v2/models/none/infer"), 404),
        (request(path="/v2/models/sum/versions/2/infer"), 404),
        (request(path="/v2/models/sum/infer/"), 404),
        (request(JSON + b" " * 100_000), 413),
    ],
)
def test_answers_are_those_of_the_application(
    sent: bytes, status: int, two_servers: tuple[Server, Server]
) -> None:
    direct, other = two_servers
    answer = ask(direct, sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer == ask(other, sent)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_plain_request_takes_no_task(
    in_pieces: bool, repository: Repository, run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []

    async def call(*arguments: Any) -> None:
        called.append(arguments)

    monkeypatch.setattr(InferApp, "__call__", call)
    pieces = request().partition(b"\r\n\r\n") if in_pieces else (request(),)
    with run_server(repository) as server, connect(server) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.05)  # so that they arrive apart
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert not called


def received(client: socket.socket, count: int = 1) -> list[bytes]:
    """The statuses of so many answers, whose body ends with a bracket."""
    answers = b""
    while answers.count(b"HTTP/1.1 ") < count or not answers.endswith(b"}"):
        answers += client.recv(65536)
    return [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]]


def test_a_head_is_read_once(
    repository: Repository, run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes mean the same each time, on any connection; what follows them is read each time."""
    read: list[Any] = []
    direct = InferApp.direct

    def count(app: InferApp, scope: Any) -> Any:
        read.append(scope)
        return direct(app, scope)

    monkeypatch.setattr(InferApp, "direct", count)
    plain = request()
    wrong = plain.replace(b"[1, 2]}", b"[1, !]}")
    assert len(wrong) == len(plain)
    with run_server(repository) as server, connect(server) as first, connect(server) as second:
        for client in (first, second):
            for sent, status in ((plain, b"200"), (wrong, b"400"), (plain, b"200")):
                client.sendall(sent)
                assert received(client) == [status]
        assert len(read) == 1
        # More than one request, less than one, and a longer body are read as any other.
        first.sendall(plain + wrong + plain)
        assert received(first, 3) == [b"200", b"400", b"200"]
        first.sendall(plain[:-5])
        time.sleep(0.05)  # so that it arrives alone
        first.sendall(plain[-5:] + plain)
        assert received(first, 2) == [b"200", b"200"]
        assert ask(server, request(JSON + b" ")).startswith(b"HTTP/1.1 200 ")
        assert len(read) > 4


def test_what_the_json_says_is_read_again_once_it_differs(
    repository: Repository, run_server: Any
) -> None:
    other = BINARY.replace(b'"id": "a"', b'"id": "b"')
    header = f"Inference-Header-Content-Length: {len(BINARY)}"
    values = (np.array([1, 2], np.float32), np.array([5, 7], np.float32))
    with run_server(repository) as server, connect(server) as client:
        for json_text, array in ((BINARY, values[0]), (BINARY, values[1]), (other, values[0])):
            client.sendall(request(json_text + array.tobytes(), header))
            answer = client.recv(65536)
            assert np.cumsum(array, dtype=np.float32).tobytes() in answer
            assert (b'"id":"b"' in answer) == (json_text is other)


def test_a_known_head_when_the_server_stops(repository: Repository, run_server: Any) -> None:
    """The answer is the last of its connection, whatever the head was."""
    with run_server(repository) as server, connect(server) as client:
        client.sendall(request())
        assert received(client) == [b"200"]
        server._http._places.stopping = True
        client.sendall(request())
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert b"connection: close" in answer


def test_few_heads_are_kept() -> None:
    heads = KnownHeads()
    begin: Any = lambda body, reply: None  # noqa: E731
    for number in range(3 * MAX_KNOWN_HEADS):
        head = b"POST /%d HTTP/1.1\r\n\r\n" % number
        heads.remember(head + b"{}", KnownHead({}, begin, 2))
    assert heads.find(head + b"{}") == (KnownHead({}, begin, 2), b"{}")
    assert heads.find(head + b"{") is None
    assert heads.find(b"POST /0 HTTP/1.1\r\n\r\n{}") is None
    assert len(heads._heads) == MAX_KNOWN_HEADS
    long = b"POST / HTTP/1.1\r\ncookie: " + bytes(MAX_KNOWN_BYTES) + b"\r\n\r\n"
    heads.remember(long, KnownHead({}, begin, 0))
    assert heads.find(long) is None


@pytest.mark.parametrize("sent", ["all", "the head"])
def test_a_stop_that_has_waited_long_enough(
    sent: str, repository: Repository, run_server: Any
) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    head, end, _ = request().partition(b"\r\n\r\n")
    with run_server(repository, Settings(drain_seconds=0.3)) as server:
        clients = [connect(server) for _ in range(2)]
        for client in clients:
            client.sendall(request() if sent == "all" else head + end)
        until = time.monotonic() + 60
        while sent == "all" and model.statistics().queued < 2:
            assert time.monotonic() < until
            time.sleep(0.005)
        server._http_task.get_loop().call_soon_threadsafe(server.stop)
        for client in clients:
            with client:
                answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503 ")
            reason = "was answered" if sent == "all" else "had arrived"
            assert f"the server stopped before the request {reason}.".encode() in answer


def test_a_small_body_that_does_not_come(repository: Repository, run_server: Any) -> None:
    head, end, _ = request().partition(b"\r\n\r\n")
    with (
        run_server(repository, Settings(body_seconds=0.2)) as server,
        connect(server) as client,
    ):
        client.sendall(head + end + b"{")
        answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"the body took more than 0.2 s." in answer
        while client.recv(65536):
            pass


def test_an_answer_that_takes_too_long(repository: Repository, run_server: Any) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    with (
        run_server(repository, Settings(request_seconds=0.2)) as server,
        connect(server) as client,
    ):
        client.sendall(request())
        answer = client.recv(65536)
        model.gate.set()
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"the answer took more than 0.2 s." in answer


def test_a_fault_of_the_server_is_logged_and_not_told(
    repository: Repository, run_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = repository.model("sum")
    model.fails = RuntimeError("a secret")
    with run_server(repository) as server:
        answer = ask(server, request())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer
    assert "a secret" in caplog.text


def test_others_are_answered_while_a_large_answer_is_written(
    repository: Repository, run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = threading.Event()
    others_answered = threading.Event()
    module = __import__("deploy_rnn.serving.rest.infer", fromlist=["write"])
    write = module.write

    def write_slowly(infer_request: Any, name: str, response: Any, settings: Any) -> Any:
        if response.outputs["y"].size > 8000:
            writing.set()
            assert others_answered.wait(60)
        return write(infer_request, name, response, settings)

    monkeypatch.setattr(module, "write", write_slowly)
    large = {**INPUT, "shape": [1, 40_000], "data": [1] * 40_000}
    body = json.dumps({"inputs": [large]}, separators=(",", ":")).encode()
    assert len(body) < 128 * 1024
    with run_server(repository) as server, connect(server) as client:
        client.sendall(request(body))
        assert writing.wait(60)
        assert ask(server, request()).startswith(b"HTTP/1.1 200 ")
        others_answered.set()
        assert client.recv(12) == b"HTTP/1.1 200"


@contextmanager
def garbage_kept() -> Iterator[list[Any]]:
    """Gets what refers to itself in a circle, and was not collected inside the block."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_an_answer_leaves_no_garbage(repository: Repository, run_server: Any) -> None:
    """What refers to itself in a circle stays until Python looks for it among all there is, and everything waits."""
    model: Any = repository.model("sum")
    with run_server(repository) as server, connect(server) as client:
        with garbage_kept() as garbage:
            for _ in range(100):
                client.sendall(request())
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            model._accepted.clear()
        # Servers of other tests may leave some, too.
        assert len([item for item in garbage if isinstance(item, Delivery | Inferring)]) < 50


def test_a_connection_leaves_no_garbage(repository: Repository, run_server: Any) -> None:
    """Many clients open one for each request."""
    model: Any = repository.model("sum")
    with run_server(repository) as server:
        with garbage_kept() as garbage:
            for _ in range(20):
                with connect(server) as client:
                    client.sendall(request())
                    assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            # Answered once the server has seen that the others have left.
            assert ask(server, request()).startswith(b"HTTP/1.1 200 ")
            model._accepted.clear()
        assert len([item for item in garbage if isinstance(item, Connection | Exchange)]) < 5
