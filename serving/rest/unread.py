"""`UnreadAnswers`: a client must read what it asked for; `UnreadTotal`: and so must all clients together."""

import asyncio
from collections.abc import Callable
from math import inf

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = termios = None  # type: ignore[assignment]

MIN_UNREAD_RATE = 1024
"""Bytes of an answer that a client has to take in each second."""


MIN_COUNTED_BYTES = 64 * 1024
"""Of one client; less is not counted in the total: `--max-connections` of them are 64 MB."""

SLOW_RATE = 2**20
"""Bytes a second: who reads less may be dropped if too much is unread. Others have all of it soon."""

CHECK_SECONDS = 1.0
"""Time after which it shows how fast a client reads."""


LATE_SECONDS = 1.0
"""If a timer is so late, the process, or its machine, was stopped for a while, which is not the client's fault. uvloop
looks at timers before it looks at what has come meanwhile: clients get some time again."""


class UnreadTotal:
    """What the clients of a server have not read, all together: if that is too much, the slowest are dropped.

    A client that reads a little now and then may take hours for an answer of hundreds of MB, which is in memory for as
    long; some dozens of them would have it all.

    Args:
        max_bytes: from which on slow clients are dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: set[UnreadAnswers] = set()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, answers: "UnreadAnswers") -> None:
        """A client has not read all that was written."""
        self._waiting.add(answers)
        if self._timer is None:
            self._check()

    def forget(self, answers: "UnreadAnswers") -> None:
        self._waiting.discard(answers)

    def _check(self) -> None:
        """Drop the slowest clients until the others are within the limit; if need be, look again."""
        self._timer = None
        self._waiting = {answers for answers in self._waiting if answers.unread_bytes}
        total = sum(answers.unread_bytes for answers in self._waiting)
        if total <= self._max_bytes:
            return
        for answers in sorted(self._waiting, key=UnreadAnswers.rate):
            if total <= self._max_bytes or answers.rate() >= SLOW_RATE:
                break
            total -= answers.unread_bytes
            self.forget(answers)
            answers.drop()
        if total > self._max_bytes:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(CHECK_SECONDS, self._check)


class UnreadAnswers:
    """Writes to a client, and drops it if it does not read.

    Args:
        transport: of the connection.
        seconds: how long a client may read less than `MIN_UNREAD_RATE`.
        drop: hangs up.
        total: what is unread of all connections.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        seconds: float,
        drop: Callable[[], None],
        total: UnreadTotal,
    ) -> None:
        self._transport = transport
        self._seconds = seconds
        self._drop: Callable[[], None] | None = drop
        self._loop = asyncio.get_running_loop()
        self._total = total
        self._written_bytes = 0
        self._unread_since = 0.0
        self._written_before = 0
        self._ends = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if not self._transport.get_write_buffer_size():
            self._unread_since = self._loop.time()
            self._written_before = self._written_bytes
        self._transport.write(data)
        self._written_bytes += len(data)
        unread_bytes = self.unread_bytes
        if self._timer is None and unread_bytes:
            self._watch(self._unread_since)
        if unread_bytes > MIN_COUNTED_BYTES:
            self._total.note(self)

    @property
    def unread_bytes(self) -> int:
        """Bytes that are in memory of this process."""
        return self._transport.get_write_buffer_size()

    def rate(self) -> float:
        """Bytes a second that the client has read since something waits for it; infinite until that is known."""
        seconds = self._loop.time() - self._unread_since
        if seconds < CHECK_SECONDS:
            return inf
        return (self._written_bytes - self._written_before - self.unread_bytes) / seconds

    def drop(self) -> None:
        """Hang up."""
        if self._drop is not None:
            self._drop()

    def end(self) -> None:
        """The connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
        self._total.forget(self)
        # It belongs to the connection; in a circle, both would stay in memory until garbage is collected.
        self._drop = None

    def _watch(self, since: float) -> None:
        """Drop the connection if the client does not read what was written at `since`."""
        self._ends = since + self._seconds
        arguments = (self._loop.time(), self._read_bytes())
        self._timer = self._loop.call_at(self._ends, self._check, *arguments)

    def _check(self, began: float, read_before: int) -> None:
        self._timer = None
        if not self._transport.get_write_buffer_size():
            return
        now = self._loop.time()
        if self._unread_since > began:
            # That was read; what waits now was written later.
            self._watch(self._unread_since)
        elif now > self._ends + LATE_SECONDS:
            self._watch(now)
        elif self._read_bytes() - read_before < MIN_UNREAD_RATE * (now - began):
            self.drop()
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
