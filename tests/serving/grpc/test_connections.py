"""What no library sends: HTTP/2 by hand, and clients that are silent or do not read."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from deploy_rnn.serving.grpc import calls
from deploy_rnn.serving.grpc.disconnecting import OPEN_FILES, disconnect
from deploy_rnn.serving.grpc.messages import CLASSES, SERVICE
from deploy_rnn.serving.grpc.streaming_calls import MAX_UNANSWERED, Room
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling.limits import Limits
from deploy_rnn.serving.server import Server
from deploy_rnn.serving.settings import Settings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, ACK, END_HEADERS = 1, 1, 4
NO_WINDOW = struct.pack(">HI", 4, 0)
"""A setting: nothing may be sent on a stream."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream) + payload


def headers(method: bytes, *others: tuple[bytes, bytes]) -> bytes:
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/" + method),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *others,
    ]
    # Each is a literal that enters no table.
    texts = [bytes([len(text)]) + text for field in fields for text in field]
    return b"".join(
        b"\x00" + name + value for name, value in zip(texts[::2], texts[1::2], strict=True)
    )


def message(data: bytes) -> bytes:
    return b"\x00" + struct.pack(">I", len(data)) + data


class Connection:
    """A connection of HTTP/2; a context manager."""

    def __init__(self, server: Server, settings: bytes = b"") -> None:
        self._socket = connect(server)
        self._received = b""
        self.send(PREFACE, frame(SETTINGS, 0, 0, settings))

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *raised: object) -> None:
        self._socket.close()

    def send(self, *frames: bytes) -> None:
        self._socket.sendall(b"".join(frames))

    def call(
        self, method: bytes, data: bytes, *fields: tuple[bytes, bytes], stream: int = 1
    ) -> None:
        path = f"{SERVICE}/".encode() + method
        self.send(frame(HEADERS, END_HEADERS, stream, headers(path, *fields)))
        self.send_message(data, END_STREAM, stream)

    def send_message(self, data: bytes, flags: int = 0, stream: int = 1) -> None:
        self.send(frame(DATA, flags, stream, message(data)))

    def status(self) -> int:
        """The status of the call, from its trailers."""
        while True:
            kind, flags, stream, payload = self._frame()
            if kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK, 0))
            if stream == 1 and kind == HEADERS and b"grpc-status" in payload:
                _, _, text = payload.partition(b"grpc-status")
                return int(text[1 : 1 + text[0]])

    def _frame(self) -> tuple[int, int, int, bytes]:
        head = self._bytes(9)
        payload = self._bytes(int.from_bytes(head[:3], "big"))
        return head[3], head[4], int.from_bytes(head[5:9], "big"), payload

    def _bytes(self, count: int) -> bytes:
        while len(self._received) < count:
            piece = self._socket.recv(65536)
            assert piece, "the server has closed the connection"
            self._received += piece
        taken, self._received = self._received[:count], self._received[count:]
        return taken


def connect(server: Server) -> socket.socket:
    host, _, port = server.grpc_address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def is_closed(connection: socket.socket) -> bool:
    """Read until the server closes the connection."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def infer_bytes(steps: int = 2) -> bytes:
    """A ModelInferRequest that needs few bytes for many steps; its answer needs many."""
    request = CLASSES["ModelInferRequest"](model_name="sum")
    request.inputs.add(name="x", datatype="FP32", shape=[1, steps])
    request.raw_input_contents.append(np.ones((1, steps), np.float32).tobytes())
    data: bytes = request.SerializeToString()
    return data


def is_live(server: Server) -> bool:
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer: bytes = channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=20)
    return answer == b"\x08\x01"


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


UNIMPLEMENTED, UNAVAILABLE, UNAUTHENTICATED = 12, 14, 16


@pytest.mark.parametrize(
    "path", [b"\xff\xfe/x", b"inference.GRPCInferenceService/\xff", b"nothing"]
)
def test_a_method_that_nobody_has(path: bytes, server: Server) -> None:
    """grpcio decodes the name; one that is not UTF-8 ended its server."""
    for _ in range(2):
        with Connection(server) as connection:
            connection.send(frame(HEADERS, END_HEADERS, 1, headers(path)))
            connection.send_message(b"", END_STREAM)
            assert connection.status() == UNIMPLEMENTED
    assert is_live(server)


@pytest.mark.parametrize("authorization", [b"\xff\xfe", b"Bearer \xc3\xa9", b"", b"Bearer"])
def test_a_token_that_is_no_text(
    authorization: bytes, repository: Repository, run_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        run_server(repository, Settings(token="secret")) as server,
        Connection(server) as connection,
    ):
        connection.call(b"ModelInfer", b"", (b"authorization", authorization))
        assert connection.status() == UNAUTHENTICATED
    assert not caplog.messages  # grpcio has a traceback for each


def test_silent_and_idle_connections_are_closed(repository: Repository, run_server: Any) -> None:
    settings = Settings(header_seconds=0.2, idle_seconds=0.2)
    with run_server(repository, settings) as server:
        with connect(server) as silent:
            assert is_closed(silent)
        with connect(server) as idle:
            idle.sendall(PREFACE + frame(SETTINGS, 0, 0))
            assert is_closed(idle)


def test_connections_are_limited(repository: Repository, run_server: Any) -> None:
    with run_server(repository, Settings(max_connections=2)) as server:
        crowd = [Connection(server) for _ in range(2)]
        for connection in crowd:
            connection.call(b"ServerLive", b"")
            assert connection.status() == 0
        with connect(server) as third:
            assert is_closed(third)
        for connection in crowd:
            connection._socket.close()
        wait_until(lambda: can_ask(server))


def can_ask(server: Server) -> bool:
    try:
        return is_live(server)
    except grpc.RpcError:
        return False


def test_an_answer_has_its_place_until_it_is_read(repository: Repository, run_server: Any) -> None:
    model: Any = repository.model("sum")
    with run_server(repository, Settings(max_connections=1, unread_seconds=60)) as server:
        with Connection(server, NO_WINDOW) as unread:
            unread.call(b"ModelInfer", infer_bytes(2))
            wait_until(lambda: model.statistics().successes == 1)
            time.sleep(0.1)
            assert len(server._grpc._service._calls) == 1
        wait_until(lambda: not len(server._grpc._service._calls))


def test_who_does_not_read_makes_room(
    repository: Repository,
    run_server: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two clients do not read their answers, and take all places; a third client gets one of them."""
    monkeypatch.setattr(calls, "MIN_UNREAD_RATE", 1e9)
    with (
        run_server(repository, Settings(max_connections=3, unread_seconds=0.1)) as server,
        Connection(server, NO_WINDOW) as one,
        Connection(server, NO_WINDOW) as two,
    ):
        for stream in (1, 3):
            one.call(b"ModelInfer", infer_bytes(), stream=stream)
        two.call(b"ModelInfer", infer_bytes())
        under_way = server._grpc._service._calls._calls
        wait_until(lambda: len(under_way) == 3)
        wait_until(lambda: all(each.read_by < time.monotonic() for each in [*under_way.values()]))
        with grpc.insecure_channel(server.grpc_address) as channel:
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            refused = infer.future(infer_bytes(), timeout=20)
            assert refused.code() is grpc.StatusCode.UNAVAILABLE
            wait_until(lambda: infer.future(infer_bytes(), timeout=20).code() is grpc.StatusCode.OK)
        assert is_closed(one._socket)
        wait_until(lambda: len(under_way) == 1)
    assert not caplog.records


@pytest.mark.parametrize("method", [b"ModelInfer", b"ModelStreamInfer"])
def test_too_much_that_nobody_reads_is_dropped(
    method: bytes, repository: Repository, run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MIN_UNREAD_RATE", 100)  # by itself, nobody is too slow
    settings = Settings(max_unread_bytes=20_000, unread_seconds=0.5)
    with (
        run_server(repository, settings) as server,
        Connection(server, NO_WINDOW) as one,
        Connection(server, NO_WINDOW) as two,
    ):
        under_way = server._grpc._service._calls
        one.call(method, infer_bytes(3000))
        wait_until(lambda: under_way._unread_bytes > 12_000)
        time.sleep(0.7)
        assert len(under_way) == 1  # that is not too much
        two.call(b"ModelInfer", infer_bytes(3000))
        assert is_closed(one._socket)
        wait_until(lambda: len(under_way) == 1)
        assert 12_000 < under_way._unread_bytes < 20_000
        two._socket.close()
        wait_until(lambda: not under_way._unread_bytes)


def test_who_does_not_read_does_not_hold_up_a_stop(
    repository: Repository, run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MIN_UNREAD_RATE", 1e9)
    model: Any = repository.model("sum")
    settings = Settings(unread_seconds=0.1, drain_seconds=60)
    with run_server(repository, settings) as server:
        unread = Connection(server, NO_WINDOW)
        unread.call(b"ModelInfer", infer_bytes())
        wait_until(lambda: model.statistics().successes == 1)
    with unread:
        assert is_closed(unread._socket)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_disconnect_finds_the_connection(family: int) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with socket.create_server((host, 0), family=family) as listener:
        clients = [socket.create_connection(listener.getsockname()[:2]) for _ in range(2)]
        accepted = [listener.accept()[0] for _ in clients]
        files = len(list(OPEN_FILES[0].iterdir()))
        port = clients[0].getsockname()[1]
        disconnect(f"ipv4:{host}:{port}" if host == "127.0.0.1" else f"ipv6:%5B{host}%5D:{port}")
        assert clients[0].recv(1) == b""
        accepted[1].sendall(b"x")
        assert clients[1].recv(1) == b"x"
        assert len(list(OPEN_FILES[0].iterdir())) == files
        for each in (*clients, *accepted):
            each.close()


def test_a_stream_that_is_not_read_ends(
    repository: Repository, run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MIN_UNREAD_RATE", 1e9)
    with run_server(repository, Settings(unread_seconds=0.2)) as server:
        readers = server._grpc._service._streaming_calls._readers
        with Connection(server, NO_WINDOW) as unread:
            path = f"{SERVICE}/ModelStreamInfer".encode()
            unread.send(frame(HEADERS, END_HEADERS, 1, headers(path)))
            for _ in range(20):
                unread.send_message(infer_bytes(700))
            wait_until(lambda: bool(readers))
            wait_until(lambda: not readers)
        assert is_live(server)


def test_a_stream_that_sends_nothing_ends(repository: Repository, run_server: Any) -> None:
    repository.limits = Limits(stream_idle=0.1)
    with (
        run_server(repository, Settings(idle_seconds=0.2)) as server,
        Connection(server) as connection,
    ):
        path = f"{SERVICE}/ModelStreamInfer".encode()
        connection.send(frame(HEADERS, END_HEADERS, 1, headers(path)))
        connection.send_message(infer_bytes())
        assert connection.status() == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


def test_room_for_what_is_not_answered() -> None:
    async def has_room(room: Room) -> bool:
        try:
            await asyncio.wait_for(room.wait(), 0.01)
        except TimeoutError:
            return False
        return True

    async def check() -> None:
        room = Room(100)
        room.take(99)
        assert await has_room(room)
        room.take(1000)
        assert not await has_room(room)
        room.give()
        assert not await has_room(room)
        room.give()
        assert await has_room(room)
        for _ in range(MAX_UNANSWERED):
            room.take(0)
        assert not await has_room(room)
        room.give()
        assert await has_room(room)

    asyncio.run(check())


def test_many_calls_that_are_reset_at_once(server: Server) -> None:
    with Connection(server) as connection:
        head = headers(f"{SERVICE}/ModelInfer".encode())
        reset = struct.pack(">I", 8)
        for stream in range(1, 2000, 2):
            connection.send(frame(HEADERS, END_HEADERS, stream, head), frame(3, 0, stream, reset))
        wait_until(lambda: not len(server._grpc._service._calls))
    assert is_live(server)
