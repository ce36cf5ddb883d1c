"""`Exchange`: one request over HTTP and its answer, as an ASGI application or `DirectApp` sees them."""

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Protocol

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message

from ..protocol.access_log import Access, AccessLog
from ..protocol.status import RETRY_SECONDS
from .direct import Begin, Begun, Headers

logger = logging.getLogger(__name__)

MAX_BUFFERED_BYTES = 64 * 1024
"""Of a body that the application has not asked for yet; then reading pauses."""

CLIENT_LEFT = 499
"""The status of a request, in the log of accesses, whose client did not wait for the answer."""

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class Channel(Protocol):
    """What an exchange needs of its connection."""

    @property
    def access_log(self) -> AccessLog | None: ...

    @property
    def default_headers(self) -> Iterable[tuple[bytes, bytes]]: ...

    def access_of(self, scope: dict[str, Any]) -> Access:
        """What the log of accesses says of a request that begins now."""
        ...

    async def writable(self) -> None:
        """Wait until the client has read most of what was written."""
        ...

    def write(self, data: bytes) -> None: ...

    def update(self) -> None:
        """The application has taken what there was of the body."""
        ...

    def end_exchange(self, exchange: "Exchange") -> None:
        """The answer was written: go on with the next request, or end the connection."""
        ...

    def abort(self) -> None:
        """Hang up at once; what was written and not yet sent is lost."""
        ...


class Exchange:
    """One request and its answer: `receive` and `send` of an ASGI application.

    Args:
        direct: who begins to answer it directly, once it has arrived; None if it has to be the application.

    Attributes:
        begun: whether it is being answered.
        keep_alive: whether the connection goes on after it.
        received: whether all of the request has arrived.
        answered: whether all of the answer was sent.
        buffered: bytes of the body that the application has not asked for.
    """

    def __init__(
        self,
        connection: Channel,
        app: ASGIApp,
        scope: dict[str, Any],
        *,
        keep_alive: bool,
        expects_continue: bool,
        direct: Begin | None = None,
    ) -> None:
        self.keep_alive = keep_alive
        self.begun = False
        self.received = False
        self.answered = False
        self.buffered = bytearray()
        self._connection = connection
        self._app = app
        self._scope = scope
        self._expects_continue = expects_continue
        self._disconnected = False
        self._changed = asyncio.Event()
        self._start: Message | None = None
        self._head_sent = False
        self._direct = direct
        self._begun_directly: Begun | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[Any] = set()
        self._sent_bytes = 0

    @property
    def waits_for_body(self) -> bool:
        """Whether it is begun only once all of it has arrived, since that will be little."""
        return self._direct is not None and not self.received and self._has_small_body()

    def _has_small_body(self) -> bool:
        if self._expects_continue:
            return False
        return 0 <= content_length(self._scope["headers"]) <= MAX_BUFFERED_BYTES

    def begin(self, tasks: set[Any]) -> None:
        """Begin to answer it; the server cancels what is in `tasks`, should it take too long."""
        self.begun = True
        if self._direct is not None and self.received and not self._expects_continue:
            begun = self._direct(bytes(self.buffered), self._reply)
            if begun is not None:
                if not self.answered:
                    self._begun_directly = begun
                    self._tasks = tasks
                    tasks.add(begun)
                return
        self._task = asyncio.get_running_loop().create_task(self._run())
        tasks.add(self._task)
        self._task.add_done_callback(tasks.discard)

    def add_body(self, piece: bytes) -> None:
        self.buffered += piece
        self._changed.set()

    def end_body(self) -> None:
        self.received = True
        self._changed.set()

    def disconnect(self) -> None:
        """The client has left: nobody waits for the answer."""
        self._disconnected = True
        self._changed.set()
        if self._task is not None:
            self._task.cancel()
        if self._begun_directly is not None:
            self._begun_directly.leave()
            self._tasks.discard(self._begun_directly)

    async def _run(self) -> None:
        log = self._connection.access_log
        if log is None:
            await self._answer()
            return
        access = self._connection.access_of(self._scope)
        try:
            await self._answer()
        finally:
            access.status = CLIENT_LEFT
            if self._head_sent and self._start is not None:
                access.status = self._start["status"]
            # Set by the router.
            access.model = self._scope.get("path_params", {}).get("model", "")
            access.size = self._sent_bytes
            log.add(access)

    async def _answer(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as error:
            logger.error("a request failed", exc_info=error)
            await self._refuse(500, "the server failed; its log has the reason.")
        except asyncio.CancelledError:
            # If the client has not left, the server has waited long enough.
            await self._refuse(503, "the server stopped before the request had arrived.")
        finally:
            if not self.answered and not self._disconnected:
                self._connection.abort()

    async def _refuse(self, status: int, message: str) -> None:
        """Answer that there is no answer, unless it has begun."""
        if not self._head_sent and not self._disconnected:
            await refusal(status, message)(self._scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._expects_continue and not self.received and not self._disconnected:
            self._expects_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.buffered or self.received or self._disconnected):
            self._changed.clear()
            await self._changed.wait()
        if self._disconnected or self.answered:
            return {"type": "http.disconnect"}
        body = bytes(self.buffered)
        self.buffered.clear()
        self._connection.update()
        return {"type": "http.request", "body": body, "more_body": not self.received}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        assert self._start is not None, "an answer must begin with its start"
        await self._connection.writable()
        if self._disconnected:
            return
        body: bytes = b"" if self._scope["method"] == "HEAD" else message.get("body", b"")
        self._sent_bytes += len(body)
        if self._head_sent:
            self._connection.write(body)
        else:
            self._write(self._start["status"], self._start["headers"], body)
        if not message.get("more_body", False):
            self._end()

    def _reply(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer of an application that has begun it directly."""
        if self._begun_directly is not None:
            self._tasks.discard(self._begun_directly)
            self._begun_directly = None
        self._write(status, headers, body)
        self._end()

    def _write(self, status: int, headers: Headers, body: bytes) -> None:
        """The head of the answer, and what there is of its body."""
        self._head_sent = True
        head = self._head(status, headers)
        # One packet for a small answer; a large one is not copied.
        if len(body) < MAX_BUFFERED_BYTES:
            self._connection.write(head + body)
        else:
            self._connection.write(head)
            self._connection.write(body)

    def _end(self) -> None:
        self.answered = True
        self._connection.end_exchange(self)

    def _head(self, status: int, headers: Headers) -> bytes:
        # The client may send its next request instead of a body that it was not told to send.
        if self._expects_continue and not self.received:
            self.keep_alive = False
        lines = [b"HTTP/1.1 %d %b" % (status, _PHRASES.get(status, b""))]
        names = set()
        for name, value in (*self._connection.default_headers, *headers):
            if b"\n" in value or b"\r" in value:
                raise ValueError(f"a value of header {name!r} has the end of a line in it.")
            names.add(name)
            if name == b"connection":
                self.keep_alive &= value.lower() != b"close"
            else:
                lines.append(name + b": " + value)
        has_body = status >= 200 and status not in (204, 304)
        if has_body and b"content-length" not in names:
            self.keep_alive = False  # then the end of the connection is that of the answer
        if not self.keep_alive:
            lines.append(b"connection: close")
        return b"\r\n".join([*lines, b"", b""])


def content_length(headers: Headers) -> int:
    """-1 for a body of which the head does not say how long it is."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return -1


def refusal(status: int, message: str) -> ASGIApp:
    """An application that answers that there is no answer, and ends the connection."""
    headers = {"Connection": "close"}
    if status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    return JSONResponse({"error": message}, status, headers)
