"""The load's side of gRPC: HTTP/2 frames, written and read here, since a library's client takes as much as a server.

Only what a unary call needs. Requests of all calls share a few connections. What the server says in headers is not
read: a call that ends without a message has failed.
"""

import asyncio
import struct
from collections import deque

import numpy as np

from benchmarks.serving.over_http import Answered
from benchmarks.serving.traffic import FailedError
from deploy_rnn.serving.grpc.messages import CLASSES, SERVICE

CONNECTIONS = 8
DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW = 65_535
LARGEST_WINDOW = 2**31 - 1

# RFC 7541: what the static table has is named by its index; the rest is sent once, and then named by an index, too.
_POST = b"\x83"
_PLAIN = b"\x86"


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that the other side is to remember."""
    return b"\x40" + bytes([len(name)]) + name + bytes([len(value)]) + value


FIRST_HEADERS = (
    _POST
    + _PLAIN
    + _literal(b":path", f"/{SERVICE}/ModelInfer".encode())
    + _literal(b":authority", b"localhost")
    + _literal(b"te", b"trailers")
    + _literal(b"content-type", b"application/grpc")
)
LATER_HEADERS = _POST + _PLAIN + bytes([0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62])


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def request_bytes(model: str, row: np.ndarray) -> bytes:
    """The message of a request for `output` of one row."""
    message = CLASSES["ModelInferRequest"](model_name=model)
    message.inputs.add(name="characters", datatype="INT64", shape=row.shape)
    message.outputs.add(name="output")
    message.raw_input_contents.append(row.tobytes())
    serialized: bytes = message.SerializeToString()
    return struct.pack(">BI", 0, len(serialized)) + serialized


def read_answer(answer: bytes) -> np.ndarray:
    """The scores in the message of an answer.

    Raises:
        FailedError: there is no message.
    """
    if not answer:
        raise FailedError("the call ended without a message")
    message = CLASSES["ModelInferResponse"].FromString(answer[5:])
    (output,) = message.outputs
    return np.frombuffer(message.raw_output_contents[0], np.float32).reshape(tuple(output.shape))


class Connection(asyncio.Protocol):
    """Each call is a stream of its own."""

    def __init__(self, answered: Answered) -> None:
        self._answered = answered
        self._received = b""
        self._calls: dict[int, int] = {}
        self._messages: dict[int, bytes] = {}
        self._next_stream = 1
        self._window = INITIAL_WINDOW
        self._unsent: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        stream_window = struct.pack(">HI", 4, LARGEST_WINDOW)
        more_window = struct.pack(">I", LARGEST_WINDOW - INITIAL_WINDOW)
        transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, stream_window)
            + frame(WINDOW_UPDATE, 0, 0, more_window)
        )

    def send(self, call: int, message: bytes) -> None:
        stream = self._next_stream
        self._next_stream += 2
        self._calls[stream] = call
        self._messages[stream] = b""
        headers = FIRST_HEADERS if stream == 1 else LATER_HEADERS
        request = frame(HEADERS, END_HEADERS, stream, headers) + frame(
            DATA, END_STREAM, stream, message
        )
        self._unsent.append(request)
        self._write()

    def _write(self) -> None:
        """Send what the server has room for; headers count too here, which leaves some room unused."""
        while self._unsent and len(self._unsent[0]) <= self._window:
            request = self._unsent.popleft()
            self._window -= len(request)
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        received = self._received + data
        start = 0
        while len(received) >= start + 9:
            size = int.from_bytes(received[start : start + 3])
            end = start + 9 + size
            if len(received) < end:
                break
            kind, flags, stream = struct.unpack_from(">BBI", received, start + 3)
            self._read(kind, flags, stream, received[start + 9 : end])
            start = end
        self._received = received[start:]

    def _read(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._messages[stream] += payload
        if kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self._answered(self._calls.pop(stream), self._messages.pop(stream))
        elif kind == SETTINGS and not flags & ACK:
            self.transport.write(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.transport.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += struct.unpack(">I", payload)[0]
            self._write()
        elif kind == GO_AWAY:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for call in self._calls.values():
            self._answered(call, None)


class Client:
    """Args:
    answered: called with each answer, or with None for one that will not come.
    """

    prepare = staticmethod(request_bytes)
    read = staticmethod(read_answer)

    def __init__(self, answered: Answered) -> None:
        self._answered = answered
        self._connections: deque[Connection] = deque()

    async def connect(self, port: int, calls: int) -> None:
        """Open the connections that `calls` requests at a time share."""
        loop = asyncio.get_running_loop()
        for _ in range(min(calls, CONNECTIONS)):
            _, connection = await loop.create_connection(
                lambda: Connection(self._answered), "127.0.0.1", port
            )
            self._connections.append(connection)

    def send(self, call: int, request: bytes) -> None:
        self._connections[0].send(call, request)
        self._connections.rotate()

    def close(self) -> None:
        for connection in self._connections:
            connection.transport.close()
