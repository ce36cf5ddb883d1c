"""uvicorn's HTTP protocol with limits on the headers, which it lacks: of time (slow loris) and of size."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
"""Of a request line and its headers."""


def limited_to(seconds: float) -> type[HttpToolsProtocol]:
    """A protocol class whose connections are dropped when headers take more than `seconds` or `MAX_HEADER_BYTES`."""

    class LimitedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _received_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_timer()

        def on_message_begin(self) -> None:
            self._start_timer()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop_timer()
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._received_bytes += len(data)
            # The timer runs only while headers are awaited.
            if self._timer is not None and self._received_bytes > MAX_HEADER_BYTES:
                self._disconnect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self) -> None:
            """From the connection, or from the first byte of a later request, until the headers are complete."""
            if self._timer is None:
                self._received_bytes = 0
                self._timer = self.loop.call_later(seconds, self._disconnect)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _disconnect(self) -> None:
            self._stop_timer()
            if not self.transport.is_closing():
                self.transport.abort()

    return LimitedProtocol
