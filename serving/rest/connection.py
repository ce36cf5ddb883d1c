"""A connection of HTTP/1.1, for uvicorn: httptools reads it, and all that a client may do to it has a limit.

Everything that is read counts until its message ends: bytes beyond the body, such as headers, trailers and the sizes of
chunks, and the time. What is written must be read. A request for an upgrade is answered as any other.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum, auto
from math import inf
from typing import Any, cast

import httptools
from starlette.types import ASGIApp

from ..protocol.access_log import Access, AccessLog
from .direct import DirectApp, KnownHead
from .exchange import MAX_BUFFERED_BYTES, Exchange, content_length, refusal
from .places import Places
from .target import parse_target
from .unread import LATE_SECONDS, UnreadAnswers

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
"""Of a request line and its headers, and of trailers."""

MAX_CHUNK_OVERHEAD = 8
"""Bytes that each byte of a body may take besides: a chunk of one byte takes 5, and extensions of chunks more."""

MAX_PIPELINED = 16
"""Requests that a client may send before the first of them is answered; it has to repeat further ones."""

LINGER_SECONDS = 2.0
"""After an early answer, such as 413, the rest of the request is read and dropped for this long: many clients read an
answer only once they have sent everything."""

LEAVING_SECONDS = 1.0
"""A client that ends its side of the connection so soon after its request still reads; later it counts as gone."""

STOPPING_SECONDS = 1.0
"""An idle connection is kept for this long once the server stops, since its next request may be on the way."""


class Awaited(Enum):
    """What a connection waits for the client to do; each has a limit of time."""

    HEAD = auto()
    BODY = auto()
    NEXT_REQUEST = auto()
    END = auto()


class Connection(asyncio.Protocol):
    """One connection. Requests are answered in their order, one at a time.

    Args:
        app: answers them.
        server_state: uvicorn's; has the connections and tasks of the server.
        places: shared by all connections.
    """

    def __init__(self, app: ASGIApp, server_state: Any, places: Places) -> None:
        self._app = app
        # The log of accesses wants to know when a request began, and what became of it.
        is_direct = isinstance(app, DirectApp) and places.access_log is None
        self._direct_app = cast(DirectApp, app) if is_direct else None
        self._state = server_state
        self._places = places
        self._settings = places.settings
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._has_place = False
        self._addresses: dict[str, tuple[str, int] | None] = {}
        # The message that is being read.
        self._messages = 0
        self._in_message = False
        self._in_head = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._reading: Exchange | None = None
        self._read_head: KnownHead | None = None
        self._overhead_bytes = 0
        self._body_bytes = 0
        # The requests that are to be answered; the first of them is being answered.
        self._exchanges: deque[Exchange] = deque()
        self._received_at = 0.0
        # Whether nothing more is read; whether everything was answered besides; whether the client has ended its side.
        self._ignores_input = False
        self._ends = False
        self._has_eof = False
        self._dropped_bytes = 0
        self._awaited: tuple[Awaited, int, bool] | None = None
        self._deadline = inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ends = inf
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._answers: UnreadAnswers = None  # type: ignore[assignment]

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # That of uvloop is of a class of its own.
        self._transport = cast(asyncio.Transport, transport)
        self._answers = UnreadAnswers(
            self._transport, self._settings.unread_seconds, self.abort, self._places.unread
        )
        self._addresses = {
            "client": _address(transport, "peername"),
            "server": _address(transport, "sockname"),
        }
        self._state.connections.add(self)
        self._has_place = self._places.enter(self, self._state.connections)
        self.update()

    def data_received(self, data: bytes) -> None:
        if self._ignores_input:
            self._drop(len(data))
            return
        is_first = not (self._in_message or self._exchanges)
        if is_first and self._read_known(data):
            return
        self._overhead_bytes += len(data)
        messages = self._messages
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            # Of this class, such as for lack of memory: the request may be well.
            logger.error("a request was not read", exc_info=error)
            if not self._ignores_input:
                self._refuse(500, "the server failed; its log has the reason.")
        except httptools.HttpParserError as error:
            if not self._ignores_input:
                self._refuse(400, f"this is not a request of HTTP/1.1: {error}.")
        allowed = MAX_HEADER_BYTES + MAX_CHUNK_OVERHEAD * self._body_bytes
        if self._overhead_bytes > allowed and not self._ignores_input:
            self._stop_reading()
        is_one = self._messages == messages + 1 and not self._in_message
        if is_first and is_one and self._read_head is not None:
            self._places.known_heads.remember(data, self._read_head)
        self._begin_first()
        self.update()

    def eof_received(self) -> bool:
        """Return whether the connection stays open for what is still to be answered."""
        self._has_eof = True
        if self._ends or time.monotonic() - self._received_at > LEAVING_SECONDS:
            return False
        self._stop_reading()
        return not self._ends

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._places.set_idle(self, idle=False)
        self._answers.end()
        if self._timer is not None:
            self._timer.cancel()
        self._ends = self._ignores_input = True
        for exchange in self._exchanges:
            exchange.disconnect()
        self._exchanges.clear()
        self._may_write.set()
        # They know this connection; in a circle, all would stay in memory until garbage is collected.
        self._parser = self._reading = None

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # What uvicorn calls.

    def shutdown(self) -> None:
        """The server stops: what was accepted is answered, and then the connection ends."""
        if self._exchanges:
            self._exchanges[-1].keep_alive = False
            self._begin_first(wait=False)
        self.update()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._messages += 1
        self._in_message = self._in_head = True
        self._url = b""
        self._headers = []
        self._reading = None
        self._read_head = None
        self._dropped_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes after the head are trailers, which nobody asks for.
        if self._in_head:
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._ignores_input or self._parser.should_upgrade():
            return
        self._in_head = False
        version = self._parser.get_http_version()
        head_bytes = len(self._url) + sum([len(name) + len(value) for name, value in self._headers])
        if head_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"the headers have more than {MAX_HEADER_BYTES} bytes.")
        elif len(self._exchanges) >= MAX_PIPELINED:
            self._stop_reading()
        elif version not in ("1.0", "1.1"):
            self._refuse(505, f"HTTP/{version} is not supported; use HTTP/1.1.")
        else:
            self._accept(version)

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes -= len(body)
        self._body_bytes += len(body)
        if self._ignores_input or self._reading is None or self._reading.answered:
            self._drop(len(body))
        else:
            self._reading.add_body(body)

    def on_message_complete(self) -> None:
        if self._ignores_input or self._parser.should_upgrade():
            return
        self._in_message = False
        self._overhead_bytes = self._body_bytes = 0
        self._received_at = time.monotonic()
        if self._reading is not None:
            self._reading.end_body()

    # What an exchange calls.

    @property
    def access_log(self) -> AccessLog | None:
        return self._places.access_log

    def access_of(self, scope: dict[str, Any]) -> Access:
        """What the log of accesses says of a request that begins now."""
        client = self._addresses["client"]
        address = ""
        if client is not None:
            host, port = client
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        path = scope.get("raw_path", b"").decode("latin-1")
        return Access("http", address, scope["method"], path)

    @property
    def default_headers(self) -> Iterable[tuple[bytes, bytes]]:
        headers: Iterable[tuple[bytes, bytes]] = self._state.default_headers
        return headers

    async def writable(self) -> None:
        """Wait until the client has read most of what was written."""
        await self._may_write.wait()

    def write(self, data: bytes) -> None:
        self._answers.write(data)

    def end_exchange(self, exchange: Exchange) -> None:
        """The answer was written: go on with the next request, or end the connection."""
        self._exchanges.popleft()
        if not exchange.keep_alive or (self._ignores_input and not self._exchanges):
            self._end()
        self._begin_first()
        self.update()

    def abort(self) -> None:
        """Hang up at once; what was written and not yet sent is lost."""
        self._ends = self._ignores_input = True
        self._transport.abort()

    def update(self) -> None:
        """After any change: pause or resume reading, and set the timer for what is awaited now."""
        if self._transport.is_closing():
            return
        # Otherwise it goes on reading, if only to see that the client leaves.
        buffered = sum([len(exchange.buffered) for exchange in self._exchanges])
        is_full = buffered > MAX_BUFFERED_BYTES or len(self._exchanges) >= MAX_PIPELINED
        if not self._ends and is_full:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
        self._await(self._next())
        idle = self._awaited is not None and self._awaited[0] is not Awaited.BODY
        self._places.set_idle(self, idle=idle and not self._exchanges)

    # Steps of these.

    def _read_known(self, data: bytes) -> bool:
        """Take a request whose head was read before, on any connection; False if `data` is not the whole of one."""
        if self._direct_app is None or not (self._has_place and self._may_write.is_set()):
            return False
        found = self._places.known_heads.find(data)
        if found is None:
            return False
        head, body = found
        self._messages += 1
        self._received_at = time.monotonic()
        scope = {**head.scope, **self._addresses}
        keep_alive = not self._places.stopping
        exchange = Exchange(
            self, self._app, scope, keep_alive=keep_alive, expects_continue=False, direct=head.begin
        )
        exchange.add_body(body)
        exchange.end_body()
        self._add(exchange)
        self._begin_first()
        self.update()
        return True

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self._ignores_input:
                    return
                if self._parser.get_method() == b"CONNECT":
                    self._refuse(405, "CONNECT is not supported: this server is not a proxy.")
                    return
                (head_end,) = upgrade.args
                data = self._head_without_upgrade() + data[head_end:]
                self._parser = httptools.HttpRequestParser(self)

    def _head_without_upgrade(self) -> bytes:
        """The head that was read, for another parser; any server may ignore an upgrade.

        With the header, the parser would take what follows for another protocol; it is the body of the request.
        """
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, version)]
        lines += [b"%b: %b" % header for header in self._headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _accept(self, version: str) -> None:
        """Make an exchange of the request whose headers are complete."""
        try:
            target = parse_target(self._url)
        except (httptools.HttpParserInvalidURLError, AttributeError, UnicodeDecodeError):
            self._refuse(400, "the target of the request is not a path.")
            return
        headers = self._headers
        if target.has_host:  # a target that is a whole URL counts, whatever the Host
            host = self._url.partition(b"//")[2].partition(b"/")[0]
            headers = [(name, host if name == b"host" else value) for name, value in headers]
        read = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": target.path,
            "raw_path": target.raw_path,
            "root_path": "",
            "query_string": target.query,
            "headers": headers,
        }
        scope = {**read, **self._addresses}
        app = self._app
        most = self._settings.max_connections
        self._has_place = self._has_place or len(self._state.connections) <= most
        if not self._has_place and target.path not in self._places.health_paths:
            app = refusal(503, f"{most} connections are open, which is the limit; try again later.")
        expects_continue = any(
            [value.lower() == b"100-continue" for name, value in headers if name == b"expect"]
        )
        keep_alive = version == "1.1" and self._parser.should_keep_alive()
        direct = None
        # Without a place for it in memory, an answer waits for the client to read the one before.
        if self._direct_app is not None and app is self._app and self._may_write.is_set():
            direct = self._direct_app.direct(scope)
        if direct is not None and keep_alive and not expects_continue:
            self._read_head = KnownHead(read, direct, content_length(headers))
        exchange = Exchange(
            self,
            app,
            scope,
            keep_alive=keep_alive and self._has_place and not self._places.stopping,
            expects_continue=expects_continue,
            direct=direct,
        )
        self._add(exchange)

    def _add(self, exchange: Exchange) -> None:
        self._reading = exchange
        self._exchanges.append(exchange)

    def _begin_first(self, *, wait: bool = True) -> None:
        """Begin to answer the first request, unless that goes on, or waits for its body and may."""
        if not self._exchanges:
            return
        first = self._exchanges[0]
        if not (first.begun or (wait and first.waits_for_body)):
            first.begin(self._state.tasks)

    def _refuse(self, status: int, message: str) -> None:
        """Answer a request that cannot be understood, after those before it, and read no further."""
        was_answered = self._reads_body() and self._reading is not None and self._reading.answered
        self._ignores_input = True
        if was_answered:
            self._end()
            return
        self._drop_incomplete()
        scope = {"type": "http", "method": "GET"}
        app = refusal(status, message)
        self._add(Exchange(self, app, scope, keep_alive=False, expects_continue=False))
        self._reading = None  # nothing of it is to arrive

    def _stop_reading(self) -> None:
        """Read no further, answer what was accepted, and end the connection."""
        self._ignores_input = True
        self._drop_incomplete()
        if not self._exchanges:
            self.abort()

    def _reads_body(self) -> bool:
        return self._in_message and not self._in_head

    def _drop_incomplete(self) -> None:
        """A request whose body will not arrive needs no answer."""
        reading = self._reading
        if self._reads_body() and reading is not None and not reading.answered:
            self._exchanges.remove(reading)
            self._reading = None
            reading.disconnect()

    def _drop(self, size: int) -> None:
        self._dropped_bytes += size
        if self._dropped_bytes > self._settings.max_bytes:
            self.abort()

    def _end(self) -> None:
        """Everything is answered that will be. The client sees the end, and may finish what it is sending."""
        self._ends = self._ignores_input = True
        # What came after the last request of the connection was not begun.
        for exchange in self._exchanges:
            exchange.disconnect()
        self._exchanges.clear()
        if self._has_eof:
            self._transport.close()
        elif not self._transport.is_closing() and self._transport.can_write_eof():
            try:
                self._transport.write_eof()
            except OSError:  # the client has left meanwhile
                self.abort()

    def _next(self) -> Awaited | None:
        """What the client has to do next; None if the server has to."""
        if self._ends:
            return Awaited.END
        if self._ignores_input or len(self._exchanges) > 1:
            return None
        if self._in_head:
            return Awaited.HEAD
        if self._in_message:
            answered = self._reading is None or self._reading.answered
            return Awaited.END if answered else Awaited.BODY
        if self._exchanges:
            return None
        # When the server stops, a connection that has never been used is as idle as any other.
        return Awaited.NEXT_REQUEST if self._messages or self._places.stopping else Awaited.HEAD

    def _await(self, awaited: Awaited | None) -> None:
        """Set the timer, unless it runs for the same thing: more bytes do not give more time."""
        key = None if awaited is None else (awaited, max(self._messages, 1), self._places.stopping)
        if key == self._awaited:
            return
        self._awaited = key
        self._deadline = inf if awaited is None else self._loop.time() + self._seconds(awaited)
        # One that runs already looks for itself whether it is time: mostly, it only has to run for longer.
        if self._deadline < self._timer_ends:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._end_timer)
        self._timer_ends = self._deadline

    def _end_timer(self) -> None:
        self._timer = None
        self._timer_ends = inf
        if self._awaited is None:
            return
        now = self._loop.time()
        if now > self._deadline + LATE_SECONDS:
            self._deadline = now + LATE_SECONDS
        if now < self._deadline:
            self._set_timer()
        else:
            self._give_up(self._awaited[0])

    def _seconds(self, awaited: Awaited) -> float:
        if awaited is Awaited.HEAD:
            return self._settings.header_seconds
        if awaited is Awaited.BODY:
            # An application that was asked has the same limit, and should have the time to say so.
            spare = LINGER_SECONDS if self._has_begun() else 0
            return self._settings.body_seconds + spare
        if awaited is Awaited.END:
            return LINGER_SECONDS
        return STOPPING_SECONDS if self._places.stopping else self._settings.idle_seconds

    def _give_up(self, awaited: Awaited) -> None:
        if awaited is Awaited.HEAD:
            self._stop_reading()
        elif awaited in (Awaited.NEXT_REQUEST, Awaited.END):
            self._ends = self._ignores_input = True
            self._transport.close()
        elif not self._has_begun():
            self._refuse(504, f"the body took more than {self._settings.body_seconds:g} s.")
            self._begin_first()
            self.update()
        else:
            self.abort()

    def _has_begun(self) -> bool:
        """Whether the request that is being read is being answered."""
        return self._reading is not None and self._reading.begun


def connection_factory(places: Places) -> Callable[..., Connection]:
    """What uvicorn makes each connection with: its option `http`."""

    def make(config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> Connection:
        return Connection(config.loaded_app, server_state, places)

    return make


def _address(transport: asyncio.BaseTransport, name: str) -> tuple[str, int] | None:
    address = transport.get_extra_info(name)
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None
