"""The load's side of HTTP: prepared bytes out, whole answers in. One request at a time on each connection."""

import asyncio
import json
from collections import deque
from collections.abc import Callable

import numpy as np

from benchmarks.serving.traffic import FailedError

Answered = Callable[[int, bytes | None], None]
"""Takes the number of a call and its whole answer; None if the connection was lost."""


def request_bytes(model: str, row: np.ndarray) -> bytes:
    """A whole request for `output` of one row, both as binary tensors."""
    tensor = {
        "name": "characters",
        "datatype": "INT64",
        "shape": row.shape,
        "parameters": {"binary_data_size": row.nbytes},
    }
    outputs = [{"name": "output", "parameters": {"binary_data": True}}]
    message = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    header = (
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: localhost",
        f"Inference-Header-Content-Length: {len(message)}",
        f"Content-Length: {len(message) + row.nbytes}",
    )
    return "\r\n".join(header).encode() + b"\r\n\r\n" + message + row.tobytes()


def read_answer(answer: bytes) -> np.ndarray:
    """The scores in a whole answer.

    Raises:
        FailedError: the server has answered with an error.
    """
    header, _, body = answer.partition(b"\r\n\r\n")
    if not header.startswith(b"HTTP/1.1 200"):
        raise FailedError(f"{header.splitlines()[0].decode()}: {body[:200].decode()}")
    length = _number(header, b"inference-header-content-length")
    (output,) = json.loads(body[:length])["outputs"]
    return np.frombuffer(body, np.float32, offset=length).reshape(output["shape"])


def _number(header: bytes, name: bytes) -> int:
    value = header.lower().partition(b"\r\n" + name + b":")[2]
    return int(value.partition(b"\r\n")[0])


class Connection(asyncio.Protocol):
    def __init__(self, client: "Client") -> None:
        self._client = client
        self._received = b""
        self._size = 0
        self.call: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, call: int, request: bytes) -> None:
        self.call = call
        self._received = b""
        self._size = 0
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._size:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._size = end + 4 + _number(self._received[:end], b"content-length")
        if len(self._received) >= self._size:
            self._client.finish(self, self._received)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.lose(self)


class Client:
    """Connections that are opened before the load begins, and used in turn.

    Args:
        answered: called with each answer, or with None for one that will not come.
    """

    prepare = staticmethod(request_bytes)
    read = staticmethod(read_answer)

    def __init__(self, answered: Answered) -> None:
        self._answered = answered
        self._idle: deque[Connection] = deque()
        self._connections: set[Connection] = set()

    async def connect(self, port: int, calls: int) -> None:
        """Open a connection for each of `calls` requests that may wait for their answers at a time."""
        loop = asyncio.get_running_loop()
        for _ in range(calls):
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", port
            )
            self._idle.append(connection)
            self._connections.add(connection)

    def send(self, call: int, request: bytes) -> None:
        if self._idle:
            self._idle.popleft().send(call, request)
        else:  # the server has closed some
            self._answered(call, None)

    def finish(self, connection: Connection, answer: bytes) -> None:
        call = connection.call
        connection.call = None
        self._idle.append(connection)
        if call is not None:
            self._answered(call, answer)

    def lose(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection.call is not None:
            self._answered(connection.call, None)
        else:
            self._idle.remove(connection)

    def close(self) -> None:
        for connection in list(self._connections):
            connection.transport.close()
