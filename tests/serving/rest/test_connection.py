"""Connections over raw sockets: what a client may send, leave out, or never read."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy_rnn.serving import server as server_module
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest import connection, places, unread
from deploy_rnn.serving.rest.app import make_app
from deploy_rnn.serving.rest.exchange import Exchange
from deploy_rnn.serving.rest.unread import SLOW_RATE, UnreadAnswers, UnreadTotal
from deploy_rnn.serving.server import Server
from deploy_rnn.serving.settings import Settings
from tests.serving.connecting import connect

SHORT = 0.3
"""Seconds of the limits under test; those that a test must not reach are the defaults."""

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LIVE = b'{"live":true}'
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
).encode()
SUMS = b'"data":[1.0,3.0]'


def post(*headers: str, path: str = "/v2/models/sum/infer", body: bytes = BODY) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(end: bytes, path: str = "/v2/models/sum/infer") -> bytes:
    """A request in one chunk; `end` comes after it."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"%x\r\n%b\r\n" % (len(BODY), BODY) + end


@pytest.fixture(scope="module")
def repository(sum_folder: Path, load_repository: Callable[..., Any]) -> Iterator[Repository]:
    with load_repository(sum_folder) as repository:
        yield repository


@pytest.fixture
def own_repository(sum_folder: Path, load_repository: Callable[..., Any]) -> Iterator[Repository]:
    """For a test that stops its server, which closes the repository."""
    with load_repository(sum_folder) as repository:
        yield repository


@pytest.fixture(scope="module")
def server(repository: Repository, run_server: Callable[..., Any]) -> Iterator[Server]:
    with run_server(repository) as server:
        yield server


def receive_all(client: socket.socket) -> bytes:
    """Everything until the server ends the connection, in whichever way."""
    data = b""
    with suppress(ConnectionError):
        while piece := client.recv(65536):
            data += piece
    return data


def receive(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        data += client.recv(65536) or pytest.fail(f"the connection ended after {data!r}")
    return data


def ask(server: Server, *pieces: bytes) -> bytes:
    """All that is answered to a client that sends `pieces`, one after the other, and then ends its side."""
    with connect(server) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.02)
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


def statuses(answers: bytes) -> list[int]:
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")


@pytest.mark.parametrize(
    "pieces",
    [
        (post(*UPGRADE),),
        (post(*UPGRADE)[: -len(BODY)], BODY),
        (post("Connection: upgrade", "Upgrade: websocket"),),
        (chunked(b"0\r\n\r\n").replace(b"Host: x", b"Host: x\r\nConnection: upgrade\r\nUpgrade: a"),),
    ],
)  # fmt: skip
def test_a_request_for_an_upgrade_is_answered_as_any_other(
    pieces: tuple[bytes, ...], server: Server
) -> None:
    answers = ask(server, *pieces, GET)
    assert statuses(answers) == [200, 200]
    assert SUMS in answers
    assert answers.endswith(LIVE)


def test_the_body_of_an_upgrade_is_not_a_request(server: Server) -> None:
    answers = ask(server, post(*UPGRADE, body=GET))
    assert statuses(answers) == [400]
    assert LIVE not in answers


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (GET, [200]), (GET * 3, [200] * 3), (post() + GET, [200, 200]),
        (post()[:-3], []), (GET + post() + GET[:20], [200, 200]), (GET + post() + post()[:-5], [200, 200]),
        (b"", []), (GET[:20], []),
    ],
)  # fmt: skip
def test_a_half_closed_connection_gets_its_answers(
    sent: bytes, expected: list[int], server: Server
) -> None:
    assert statuses(ask(server, sent)) == expected


@pytest.mark.parametrize(
    ("behind", "expected"),
    [(b"", [200]), (chunked(b"zz\r\n"), [200, 400]), (chunked(b"1;" + b"a" * 70_000), [200])],
)
def test_a_connection_may_be_half_closed_before_its_answer(
    behind: bytes, expected: list[int], server: Server, repository: Repository
) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    accepted = len(model._accepted)
    with connect(server) as client:
        client.sendall(post() + behind)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: len(model._accepted) > accepted)
        time.sleep(0.1)  # the server sees the end meanwhile
        model.gate.set()
        answers = receive_all(client)
    assert statuses(answers) == expected
    assert SUMS in answers


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"\x16\x03\x01 TLS\r\n\r\n", [400]), (GET + b"nothing\r\n\r\n", [200, 400]),
        (chunked(b"zz\r\n"), [400]), (chunked(b"zz\r\n", "/v2/models/no/infer"), [400]),
        (post("Transfer-Encoding: chunked"), [400]), (post("Content-Length: 1"), [400]),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + GET, [405]), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
        (GET.replace(b"1.1", b"2.0"), [505]), (GET + GET.replace(b"1.1", b"0.9"), [200, 505]),
        (b"GET /v2/health/live HTTP/1.0\r\n\r\n", [200]), (GET.replace(b"/v2", b"http://other/v2"), [200]),
        (GET.replace(b"Host: x\r\n", b""), [400]), (GET.replace(b"Host: x\r\n", b"Host: x\r\nHost: y\r\n"), [400]),
        (GET.replace(b"live", b"live/").replace(b"x", b"other"), [404]),
        (GET.replace(b"x", b"x\r\nA: " + b"a" * 70_000), [431]),
        (GET.replace(b"x", b"x\r\nConnection: close") + GET, [200]), (GET.replace(b"GET", b"HEAD") + GET, [200, 200]),
        (post("Expect: 100-continue", path="/v2/models/no/infer")[: -len(BODY)] + GET, [404]),
        (chunked(b"0\r\nContent-Encoding: gzip\r\n\r\n") + GET, [200, 200]),
        (GET * (connection.MAX_PIPELINED + 9), [200] * connection.MAX_PIPELINED),
    ],
)  # fmt: skip
def test_one_answer_for_each_request(
    sent: bytes, expected: list[int], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    assert statuses(ask(server, sent)) == expected
    assert not caplog.messages  # a client's mistakes are not the server's


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (post("Content-Length: 1"), "Duplicate Content-Length"),
        (GET.replace(b"GET", b"FETCH"), "Invalid method encountered"),
    ],
)
def test_a_request_that_is_not_http_is_told_why(sent: bytes, reason: str, server: Server) -> None:
    message = f'{{"error":"this is not a request of HTTP/1.1: {reason}."}}'
    assert ask(server, sent).endswith(message.encode())


def test_an_error_of_its_own_is_not_the_client_s(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(exchange: Exchange, piece: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(Exchange, "add_body", fail)
    answers = ask(server, GET + post("X-Other: head") + GET)
    assert statuses(answers) == [200, 500]
    assert b"the server failed; its log has the reason." in answers
    assert caplog.messages == ["a request was not read"]


def test_a_client_may_wait_until_it_is_told_to_go_on(server: Server) -> None:
    request = post("Expect: 100-continue")
    with connect(server) as client:
        client.sendall(request[: -len(BODY)])
        receive(client, b"HTTP/1.1 100 Continue\r\n\r\n")
        client.sendall(BODY)
        assert SUMS in receive(client, b"]}")


@pytest.mark.parametrize(
    "flood",
    [
        (chunked(b"0\r\n"), b"a:b\r\n"),  # trailers
        (chunked(b"1;"), b"a" * 100),  # an extension of a chunk
        (GET, b"\r\n"),  # what may come before a request
        (post(path="/v2/models/no/infer", body=b"x" * 10**8)[:200], b"x" * 100),  # a body that nobody reads
    ],
)  # fmt: skip
def test_no_part_of_a_message_is_endless(flood: tuple[bytes, bytes], server: Server) -> None:
    start, more = flood
    sent = 0
    with connect(server) as client, suppress(ConnectionError):
        client.sendall(start)
        while sent < 80_000_000:
            client.sendall(more * 20_000)
            sent += len(more) * 20_000
    assert sent < 80_000_000


def test_a_client_that_sends_too_much_sees_why(server: Server) -> None:
    with connect(server) as client:
        client.sendall(
            post(body=b"")[:-4].replace(b"Content-Length: 0", b"Content-Length: 9000000")
        )
        client.sendall(b"\r\n\r\n" + b" " * 9_000_000)
        answer = receive_all(client)
    assert statuses(answer) == [413]
    assert b"use binary tensors" in answer


@pytest.fixture(scope="module")
def impatient(repository: Repository, run_server: Callable[..., Any]) -> Iterator[Server]:
    settings = Settings(
        header_seconds=SHORT, body_seconds=SHORT, idle_seconds=SHORT, unread_seconds=SHORT
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "LINGER_SECONDS", SHORT)
        with run_server(repository, settings) as server:
            yield server


@pytest.mark.parametrize(
    ("sent", "later"),
    [
        (GET, b"\r\n"), (GET, b""), (GET, b"GET"), (b"\r\n", b"\r\n"),
        (post(path="/v2/models/no/infer")[:-9], b"x"),
        (chunked(b"0\r\n"), b"a: b\r\n"), (GET + post()[:-9], b""),
        (post("Upgrade: h2c", "Connection: upgrade")[:-9], b""),
    ],
)  # fmt: skip
def test_a_client_that_stays_silent_is_hung_up_on(
    sent: bytes, later: bytes, impatient: Server
) -> None:
    with connect(impatient) as client:
        started = time.monotonic()
        client.sendall(sent)
        for _ in range(3):
            time.sleep(SHORT / 4)
            with suppress(ConnectionError):
                client.sendall(later)
        receive_all(client)
    assert time.monotonic() - started < 15


def test_a_server_that_was_stopped_for_a_while_reads_what_came_meanwhile(server: Server) -> None:
    with connect(server) as client:
        client.sendall(post()[:-5])
        held: list[Any] = []
        wait_until(lambda: _find_waiting(server, held))
        loop = server._http_task.get_loop()

        def end_timer_late() -> None:
            held[0]._deadline = loop.time() - 5
            held[0]._end_timer()
            client.sendall(post()[-5:])

        loop.call_soon_threadsafe(end_timer_late)
        assert SUMS in receive(client, b"}")


def _find_waiting(server: Server, held: list[Any]) -> bool:
    """Put the connection that waits for a body into `held`."""
    connections: list[Any] = list(server._http.server_state.connections)
    held += [found for found in connections if found._reads_body()]
    return bool(held)


def large_answers() -> bytes:
    """Requests whose answers have 320 KB each."""
    fields = {"name": "x", "datatype": "FP32", "shape": [8, 10_000], "data": [1] * 80_000}
    parameters = {"binary_data_output": True}
    body = json.dumps({"inputs": [fields], "parameters": parameters}).encode()
    return post(body=body) * 100


def test_a_client_that_does_not_read_is_hung_up_on(impatient: Server) -> None:
    with connect(impatient) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(ConnectionError):
            client.sendall(large_answers())


def test_too_much_that_is_not_read_is_dropped(
    own_repository: Repository, run_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "CHECK_SECONDS", 0.1)
    with run_server(
        own_repository, Settings(max_unread_bytes=200_000, unread_seconds=60)
    ) as server:
        with connect(server) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with pytest.raises(ConnectionError):
                client.sendall(large_answers())
        assert statuses(ask(server, post())) == [200]


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("how", ["reset", "closed after a while"])
def test_what_a_client_has_left_is_not_run(
    how: str, requests: int, server: Server, repository: Repository
) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    blocking = connect(server)
    blocking.sendall(post())
    wait_until(lambda: model.statistics().queued >= 1)
    accepted = len(model._accepted)
    client = connect(server)
    client.sendall(post() * requests)
    wait_until(lambda: len(model._accepted) > accepted)
    with pytest.MonkeyPatch.context() as patch:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            patch.setattr(connection, "LEAVING_SECONDS", 0.0)
        client.close()
        wait_until(lambda: model._accepted[-1].cancelled())
    model.gate.set()
    with blocking:
        assert SUMS in receive(blocking, b"]}")


def test_a_full_server(own_repository: Repository, run_server: Callable[..., Any]) -> None:
    """Who waits for an answer keeps its place; health has places of its own; an idle connection makes room."""
    model: Any = own_repository.model("sum")
    model.gate.clear()
    accepted = len(model._accepted)
    with (
        pytest.MonkeyPatch.context() as patch,
        run_server(own_repository, Settings(max_connections=2)) as server,
    ):
        patch.setattr(places, "MIN_IDLE_SECONDS", 0.1)
        busy = [connect(server) for _ in range(2)]
        for client in busy:
            client.sendall(post())
        wait_until(lambda: len(model._accepted) == accepted + 2)
        for _ in range(2 * places.HEALTH_PLACES):
            assert statuses(ask(server, GET)) == [200]
        refused = ask(server, post())
        assert statuses(refused) == [503]
        assert b"2 connections are open, which is the limit; try again later." in refused
        silent = [connect(server) for _ in range(2 * places.HEALTH_PLACES)]
        assert statuses(ask(server, GET)) == [200]
        model.gate.set()
        for client in busy:
            assert SUMS in receive(client, b"]}")
        time.sleep(0.1)  # now they are idle
        assert statuses(ask(server, post())) == [200]
        for client in (*busy, *silent):
            client.close()


def test_a_stop_answers_requests_on_idle_connections(
    own_repository: Repository, run_server: Callable[..., Any]
) -> None:
    with run_server(own_repository) as server, connect(server) as client:
        client.sendall(GET)
        receive(client, LIVE)
        stop(server)
        wait_until(lambda: server._http.should_exit)
        time.sleep(0.2)
        client.sendall(post())
        answer = receive_all(client)
    assert statuses(answer) == [200]
    assert b"connection: close" in answer


def stop(server: Server) -> None:
    server._http_task.get_loop().call_soon_threadsafe(server.stop)


def test_a_stop_does_not_wait_for_connections_that_were_never_used(
    own_repository: Repository, run_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STOPPING_SECONDS", 0.2)
    with run_server(own_repository) as server, connect(server) as client:
        assert statuses(ask(server, GET)) == [200]
        stop(server)
        client.settimeout(3)
        assert client.recv(1) == b""  # closed, and not reset


def test_a_request_that_does_not_arrive_in_time_for_a_stop_may_be_sent_again(
    own_repository: Repository, run_server: Callable[..., Any]
) -> None:
    with (
        run_server(own_repository, Settings(drain_seconds=0.5)) as server,
        connect(server) as half,
        connect(server) as chunks,
    ):
        half.sendall(post()[:-5])
        chunks.sendall(chunked(b"")[:-5])
        assert statuses(ask(server, GET)) == [200]
        stop(server)
        for client in (half, chunks):
            answer = receive_all(client)
            assert statuses(answer) == [503]
            assert b"retry-after: 1" in answer
            assert b"connection: close" in answer
            assert b"the server stopped before the request had arrived." in answer


def test_a_stop_takes_the_connections_that_wait(repository: Repository) -> None:
    """Closing the listener would reset them, though their clients have sent a request."""

    async def answer_to_the_waiting() -> bytes:
        listener = server_module._listen("127.0.0.1", 0)
        listener.setblocking(False)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(GET)
        http = server_module._Uvicorn(make_app(repository), Settings())
        http.config.load()
        http.lifespan = http.config.lifespan_class(http.config)
        http.servers = []
        http.stop()
        shutdown = asyncio.create_task(http.shutdown([listener]))
        answer = await reader.read()
        writer.close()
        await shutdown
        return answer

    answer = asyncio.run(asyncio.wait_for(answer_to_the_waiting(), 20))
    assert statuses(answer) == [200]
    assert b"connection: close" in answer


class StoppedClock:
    """An event loop whose time passes by itself only: in `pass_seconds`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, function: Callable[..., Any], *args: Any) -> Any:
        timer = (when, function, args)
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: self.timers.remove(timer))

    def call_later(self, seconds: float, function: Callable[..., Any], *args: Any) -> Any:
        return self.call_at(self.now + seconds, function, *args)

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer[0] <= self.now]:
            self.timers.remove(timer)
            timer[1](*timer[2])


class Unsent:
    """A transport that keeps what is written until `unsent` is set to 0: the client has read it."""

    def __init__(self) -> None:
        self.unsent = 0
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.unsent += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def test_a_client_has_the_time_to_read_since_it_has_read_all_before() -> None:
    """uvloop sends at the end of each turn: whenever one looks, an answer may have been written just now."""

    async def check() -> None:
        transport: Any = Unsent()
        tested: Any = UnreadAnswers(transport, 10, transport.abort, UnreadTotal(10**9))
        clock = StoppedClock()
        tested._loop = clock
        for _ in range(5):  # a small answer now and then, which is read a second later
            tested.write(b"answer")
            clock.pass_seconds(1)
            transport.unsent = 0
            clock.pass_seconds(8.5)
        tested.write(b"answer")
        clock.pass_seconds(9)
        assert not transport.aborted
        clock.pass_seconds(2)
        assert transport.aborted

    asyncio.run(check())


def test_a_client_has_the_time_to_read_after_the_process_was_stopped() -> None:
    async def check() -> None:
        transport: Any = Unsent()
        tested: Any = UnreadAnswers(transport, 10, transport.abort, UnreadTotal(10**9))
        clock = StoppedClock()
        tested._loop = clock
        tested.write(b"answer")
        clock.pass_seconds(60)
        assert not transport.aborted
        clock.pass_seconds(10)
        assert transport.aborted

    asyncio.run(check())


def test_the_slowest_clients_are_dropped_if_too_much_is_unread() -> None:
    async def check() -> None:
        total = UnreadTotal(3 * SLOW_RATE)
        clock = StoppedClock()
        transports = []
        for seconds_to_read in (1.5, 4, 3, 1.2):
            transport: Any = Unsent()
            tested: Any = UnreadAnswers(transport, 100, transport.abort, total)
            tested._loop = clock
            tested.write(bytes(2 * SLOW_RATE))
            transports.append((transport, 1 / seconds_to_read))
        # Nobody is slow yet, though there is too much.
        assert not any(transport.aborted for transport, _ in transports)
        clock.pass_seconds(1)
        for transport, share_read in transports:
            transport.unsent -= int(2 * SLOW_RATE * share_read)
        total._check()
        assert [transport.aborted for transport, _ in transports] == [False, True, False, False]

    asyncio.run(check())
