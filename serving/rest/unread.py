"""`UnreadAnswers`: a client must read what it asked for."""

import asyncio
from collections.abc import Callable

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = termios = None  # type: ignore[assignment]

MIN_UNREAD_RATE = 1024
"""Bytes of an answer that a client has to take in each second."""


class UnreadAnswers:
    """Writes to a client, and drops it if it does not read.

    Args:
        transport: of the connection.
        seconds: how long a client may read less than `MIN_UNREAD_RATE`.
        drop: hangs up.
    """

    def __init__(
        self, transport: asyncio.Transport, seconds: float, drop: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._seconds = seconds
        self._drop: Callable[[], None] | None = drop
        self._loop = asyncio.get_running_loop()
        self._written_bytes = 0
        self._unread_since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if not self._transport.get_write_buffer_size():
            self._unread_since = self._loop.time()
        self._transport.write(data)
        self._written_bytes += len(data)
        if self._timer is None and self._transport.get_write_buffer_size():
            self._watch(self._unread_since)

    def end(self) -> None:
        """The connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
        # It belongs to the connection; in a circle, both would stay in memory until garbage is collected.
        self._drop = None

    def _watch(self, since: float) -> None:
        """Drop the connection if the client does not read what was written at `since`."""
        ends = since + self._seconds
        arguments = (self._loop.time(), self._read_bytes())
        self._timer = self._loop.call_at(ends, self._check, *arguments)

    def _check(self, began: float, read_before: int) -> None:
        self._timer = None
        if not self._transport.get_write_buffer_size():
            return
        now = self._loop.time()
        if self._unread_since > began:
            # That was read; what waits now was written later.
            self._watch(self._unread_since)
        elif self._read_bytes() - read_before < MIN_UNREAD_RATE * (now - began):
            assert self._drop is not None, "the timer has ended with the connection"
            self._drop()
        else:
            self._watch(now)

    def _read_bytes(self) -> int:
        """Bytes that have arrived at the client."""
        unsent = self._transport.get_write_buffer_size()
        return self._written_bytes - unsent - _unacknowledged(self._transport)


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes that the kernel holds until the client has taken them; 0 where it does not tell."""
    found = transport.get_extra_info("socket")
    if fcntl is None or found is None:
        return 0
    try:
        answer = fcntl.ioctl(found.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(answer, "little")
