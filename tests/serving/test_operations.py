"""A server whose clients are slow or die, and one that is stopped or killed."""

import asyncio
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from deploy_rnn.serving.process import SAME_SECONDS
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.server import Server
from deploy_rnn.serving.settings import Settings
from tests.serving.connecting import connect

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
TOKENS = {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]}]}


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_hung_up_on(connection: socket.socket) -> bool:
    """Wait until the server ends the connection, in whichever way."""
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


def receive_until(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += connection.recv(1000) or pytest.fail(f"the connection ended after {data!r}")
    return data


def head(length: int) -> bytes:
    return b"POST /v2/models/sum/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v2/models/sum/in", b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Slow: "]
)
def test_slow_headers_are_hung_up_on(sent: bytes, repository: Repository, run_server: Any) -> None:
    with run_server(repository, Settings(header_seconds=0.1)) as server, connect(server) as slow:
        slow.sendall(sent)
        assert is_hung_up_on(slow)


def test_slow_headers_of_a_second_request(repository: Repository, run_server: Any) -> None:
    # The first request must arrive within the limit, on a busy machine too; the second never does.
    with run_server(repository, Settings(header_seconds=2)) as server, connect(server) as slow:
        slow.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in receive_until(slow, b'{"live":true}')
        slow.sendall(b"GET /v2/health/")
        assert is_hung_up_on(slow)


def test_a_slow_body_is_answered_with_504(repository: Repository, run_server: Any) -> None:
    with run_server(repository, Settings(body_seconds=0.1)) as server, connect(server) as slow:
        slow.sendall(head(100) + b'{"inputs"')
        answer = receive_until(slow, b'"}')
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"the body took more than 0.1 s." in answer
        assert is_hung_up_on(slow)


def test_answers_are_sent_at_once(server: Server) -> None:
    """Nagle's algorithm would hold each back until the client has acknowledged its headers: 40 ms."""
    accepted = socket.socket.accept
    flags: list[int] = []

    def accept(listening: socket.socket) -> Any:
        connection, address = accepted(listening)
        flags.append(connection.proto)
        return connection, address

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "accept", accept)
        assert (
            httpx.get(f"http://{server.http_address}/v2/health/live", timeout=20).status_code == 200
        )
    assert flags == [socket.IPPROTO_TCP]


def test_slow_clients_do_not_hold_up_others(server: Server) -> None:
    crowd = [connect(server) for _ in range(100)]
    for connection in crowd:
        connection.sendall(head(1000) + b"{")
    answer = httpx.post(f"http://{server.http_address}/v2/models/sum/infer", json=BODY, timeout=20)
    assert answer.status_code == 200
    for connection in crowd:
        connection.close()


@pytest.mark.parametrize("sent", [0.3, 1.0])
def test_a_client_killed_in_the_middle(sent: float, server: Server, repository: Repository) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    body = json.dumps(BODY).encode()
    for _ in range(20):
        with connect(server) as client:
            client.sendall((head(len(body)) + body)[: round((len(body) + 90) * sent)])
    model.gate.set()
    answer = httpx.post(f"http://{server.http_address}/v2/models/sum/infer", json=BODY, timeout=20)
    assert answer.json()["outputs"][0]["data"] == [1, 3]
    wait_until(lambda: model.statistics().queued == 0)


def make_inputs() -> list[Any]:
    tensor = triton_grpc.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
    return [tensor]


def test_a_stop_answers_what_was_accepted(repository: Repository, run_server: Any) -> None:
    """An HTTP request, a gRPC call and the requests of a streaming call are on their way when the server is stopped."""
    model: Any = repository.model("sum")
    model.gate.clear()
    received: queue.Queue[Any] = queue.Queue()
    with (
        run_server(repository) as server,
        triton_grpc.InferenceServerClient(server.grpc_address) as client,
    ):

        def post() -> None:
            received.put(
                httpx.post(
                    f"http://{server.http_address}/v2/models/sum/infer", json=BODY, timeout=20
                )
            )

        thread = threading.Thread(target=post)
        thread.start()
        client.async_infer(
            "sum", make_inputs(), lambda result, error: received.put(result or error)
        )
        client.start_stream(lambda result, error: received.put(result or error))
        for _ in range(5):
            client.async_stream_infer("sum", make_inputs())
        wait_until(lambda: model.statistics().queued == 7)
        stopping = threading.Thread(target=_stop, args=(server,))
        stopping.start()
        wait_until(lambda: not repository.ready())
        assert received.empty()
        model.gate.set()
        answers = [received.get(timeout=20) for _ in range(8)]
        thread.join()
        stopping.join()
        client.stop_stream()
    statuses = [answer.status_code for answer in answers if isinstance(answer, httpx.Response)]
    assert statuses == [200]
    results = [answer for answer in answers if isinstance(answer, triton_grpc.InferResult)]
    assert [result.as_numpy("y").item() for result in results] == [1] * 6
    # The streaming call is ended, though its client has not finished.
    (last,) = [answer for answer in answers if isinstance(answer, InferenceServerException)]
    assert "the server is stopping; everything sent was answered" in str(last)


def _stop(server: Server) -> None:
    server._http_task.get_loop().call_soon_threadsafe(server.stop)


def test_a_stop_waits_for_a_while_only(repository: Repository, run_server: Any) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    answers: list[httpx.Response] = []
    with run_server(repository, Settings(drain_seconds=0.5)) as server:
        url = f"http://{server.http_address}/v2/models/sum/infer"
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(url, json=BODY, timeout=60))
        )
        thread.start()
        wait_until(lambda: model.statistics().queued == 1)
    thread.join(30)
    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (503, {"error": "the server stopped before the request was answered."})
    ]
    assert not model.gate.is_set()


def test_calls_at_the_moment_of_a_stop_are_not_cancelled(
    repository: Repository, run_server: Any
) -> None:
    """gRPC cancels what it has not handed over when it stops, and no client repeats a call that was cancelled."""
    outcomes: list[str] = []

    async def ask(method: Any) -> None:
        while True:
            try:
                await method(b"", timeout=20)
                outcomes.append("OK")
            except grpc.aio.AioRpcError as error:
                outcomes.append(error.code().name)
                if "failed to connect" in (error.details() or ""):
                    return

    async def load(server: Server) -> None:
        options = [("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(server.grpc_address, options) as channel:
            method = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            clients = [asyncio.create_task(ask(method)) for _ in range(50)]
            while outcomes.count("OK") < 100:
                await asyncio.sleep(0.01)
            _stop(server)
            await asyncio.gather(*clients)

    with run_server(repository) as server:
        asyncio.run(asyncio.wait_for(load(server), 60))
    assert set(outcomes) == {"OK", "UNAVAILABLE"}


@contextmanager
def process(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`deploy-rnn serve` in another process, and its two addresses."""
    command = [sys.executable, "-m", "deploy_rnn", "serve", str(folder), "--threads", "1", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            lines = [started.stdout.readline() for _ in range(3)] if started.stdout else []
            assert lines[0].startswith("stream (float32): input: float32 [B, T, 3]")
            assert lines[1].startswith("tagger (float32): tokens: int64 [B, T]")
            http, grpc = lines[2].removeprefix("HTTP on ").rstrip().split(", gRPC on ")
            yield started, http, grpc
        finally:
            started.kill()


ANY_PORTS = ("--http-port", "0", "--grpc-port", "0")


def test_sigterm_under_load(real_bundles: Path) -> None:
    """Every request gets an answer, or its connection is refused or closed before the server took it."""
    outcomes: list[str] = []

    async def ask(url: str, process: subprocess.Popen[str]) -> None:
        async with httpx.AsyncClient(timeout=20) as client:
            while process.poll() is None:
                try:
                    answer = await client.post(f"{url}/v2/models/tagger/infer", json=TOKENS)
                    outcomes.append(str(answer.status_code))
                except httpx.HTTPError as error:
                    outcomes.append(type(error).__name__)
                    await asyncio.sleep(0.01)

    async def load(url: str, process: subprocess.Popen[str]) -> None:
        clients = [asyncio.create_task(ask(url, process)) for _ in range(8)]
        while outcomes.count("200") < 50:
            await asyncio.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)

    with process(real_bundles, *ANY_PORTS) as (started, http, _):
        asyncio.run(asyncio.wait_for(load(http, started), 60))
        assert started.wait(20) == 0
    assert "200" in outcomes
    assert "ReadTimeout" not in outcomes
    assert set(outcomes) <= {
        "200",
        "503",
        "ConnectError",
        "ReadError",
        "RemoteProtocolError",
        "WriteError",
    }


def test_a_second_signal_does_not_wait(real_bundles: Path) -> None:
    with process(real_bundles, *ANY_PORTS) as (started, http, _):
        host, _, port = http.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(
                b"POST /v2/models/tagger/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
            )
            wait_until(lambda: httpx.get(f"{http}/v2/health/ready", timeout=20).status_code == 200)
            started.send_signal(signal.SIGTERM)
            wait_until(lambda: refused(host, int(port)))
            assert started.poll() is None
            time.sleep(2 * SAME_SECONDS)
            started.send_signal(signal.SIGTERM)
            assert started.wait(20) == -signal.SIGTERM


def refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=20).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the port was closed while the connection waited to be taken
        return False
    return False


def test_killed_and_started_again(real_bundles: Path) -> None:
    with process(real_bundles, *ANY_PORTS) as (started, http, grpc):
        assert (
            httpx.post(f"{http}/v2/models/tagger/infer", json=TOKENS, timeout=20).status_code == 200
        )
        os.kill(started.pid, signal.SIGKILL)
        started.wait(20)
    ports = ("--http-port", http.rpartition(":")[2], "--grpc-port", grpc.rpartition(":")[2])
    with process(real_bundles, *ports) as (_, again, _):
        assert again == http
        assert (
            httpx.post(f"{again}/v2/models/tagger/infer", json=TOKENS, timeout=20).status_code
            == 200
        )


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port"])
def test_a_port_that_is_taken(option: str, real_bundles: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"--http-port": "0", "--grpc-port": "0", option: port}
        command = [
            sys.executable,
            "-m",
            "deploy_rnn",
            "serve",
            str(real_bundles),
            *sum(ports.items(), ()),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert f"give another `{option}`" in result.stderr
    assert "Traceback" not in result.stderr


def test_endless_headers_are_hung_up_on(repository: Repository, run_server: Any) -> None:
    with run_server(repository, Settings(header_seconds=60)) as server:
        with connect(server) as flood, suppress(ConnectionError):
            flood.sendall(b"GET /v2/health/live HTTP/1.1\r\n")
            for _ in range(40):
                flood.sendall(b"X-More: " + b"x" * 4000 + b"\r\n")
            assert is_hung_up_on(flood)
        with connect(server) as connection:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in receive_until(connection, b'{"live":true}')
