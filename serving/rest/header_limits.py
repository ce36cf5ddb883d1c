"""uvicorn's HTTP protocol with limits on the headers that it lacks: of time (slow loris) and of size."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Bytes of a request line and headers."""


def limited_to(seconds: float) -> type[HttpToolsProtocol]:
    """A protocol that hangs up on a client whose headers take longer than `seconds`, or are longer than `MAX_HEAD`."""

    class Limited(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _received = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def on_message_begin(self) -> None:
            self._watch()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop()
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._received += len(data)
            if self._timer is not None and self._received > MAX_HEAD:
                self._hang_up()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """The clock runs from the connection, or from a request's first byte, until its headers are complete."""
            if self._timer is None:
                self._received = 0
                self._timer = self.loop.call_later(seconds, self._hang_up)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _hang_up(self) -> None:
            self._stop()
            if not self.transport.is_closing():
                self.transport.abort()

    return Limited
