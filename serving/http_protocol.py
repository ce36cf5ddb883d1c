"""uvicorn's HTTP protocol with a time limit on the headers, which uvicorn itself has not (slow loris)."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def limited_to(seconds: float) -> type[H11Protocol]:
    """A protocol that hangs up on a client whose request line and headers take longer than `seconds`."""

    class Limited(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """The clock runs from the first byte, or from the connection, until the headers are complete."""
            if self.conn.their_state is not h11.IDLE:
                self._stop()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self._hang_up)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _hang_up(self) -> None:
            self._timer = None
            if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
                self.transport.abort()

    return Limited
