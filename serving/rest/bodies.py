"""The body of a request over HTTP: it arrives within limits of size and time, and is decompressed within others."""

from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from deploy_rnn.errors import TooLargeError

from ..protocol.inference import Deadline
from ..settings import Settings
from .binary import too_much_json
from .compression import MAX_RATIO, decompress
from .exchange import content_length


@dataclass(frozen=True)
class Body:
    """The body of a request as it came.

    Attributes:
        encoding: its Content-Encoding; "" for none.
        max_bytes: that it may have once decompressed.
        only_json: whether nothing but JSON is expected in it.
    """

    data: bytes
    encoding: str
    max_bytes: int
    only_json: bool

    @property
    def most_bytes(self) -> int:
        """How many it may have once decompressed."""
        size = len(self.data)
        return min(size * MAX_RATIO, self.max_bytes) if self.encoding else size

    def decompressed(self) -> bytes:
        try:
            return decompress(self.data, self.encoding, self.max_bytes)
        except TooLargeError:
            if not self.only_json:
                raise
            raise _too_much_json(self.max_bytes) from None


async def receive_body(
    scope: Scope, receive: Receive, encoding: str, settings: Settings, *, only_json: bool
) -> Body:
    """Read the body of a request.

    Args:
        scope: of the request.
        encoding: the value of the header `Content-Encoding`; "" for none.
        only_json: whether nothing but JSON is expected in it.

    Raises:
        TooLargeError: it has more bytes than `settings` allow, or its head says so; the rest of it is not read.
        DeadlineError: it has not arrived in time.
        ClientDisconnect: the client has left.
    """
    max_bytes = settings.max_json_bytes if only_json else settings.max_bytes
    if content_length(scope["headers"]) > max_bytes:
        raise _too_large(max_bytes, only_json)
    async with Deadline(settings.body_seconds, "the body took"):
        data = await _receive(receive, max_bytes, only_json)
    return Body(data, encoding.strip().lower(), max_bytes, only_json)


async def _receive(receive: Receive, max_bytes: int, only_json: bool) -> bytes:
    pieces: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes, only_json)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(max_bytes: int, only_json: bool) -> TooLargeError:
    if only_json:
        return _too_much_json(max_bytes)
    return TooLargeError(f"the body has more than {max_bytes} bytes, which is the limit.")


def _too_much_json(max_bytes: int) -> TooLargeError:
    return TooLargeError(too_much_json("the body has more", max_bytes))
