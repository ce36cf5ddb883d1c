"""`StreamTable`: the sequences that come in chunks, how long their states are kept, and why one is gone."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deploy_rnn.errors import BusyError, InputError, StreamError

from .limits import Limits

MAX_REASONS = 10_000
"""How many streams that are gone the table remembers, with the reason; earlier ones are unknown to it."""


@dataclass(eq=False)
class Stream:
    """A sequence that comes in chunks.

    Attributes:
        name: the client's id.
        rows: of each of its chunks.
        last_used: when a chunk last came, or was answered.
        states: input -> what the chunk before gave, batch-first; empty before the first.
        waiting: chunks that came and are not answered.
        running: whether a run of its chunks goes on; the next ones need the states that it gives.
        admitted: chunks that it has had.
        broken: why it cannot go on; None if it can.
        first_lost: the number of the first chunk that it cannot go on with; those before it are still answered.
    """

    name: int | str
    rows: int
    last_used: float
    states: Mapping[str, np.ndarray] = field(default_factory=dict)
    waiting: int = 0
    running: bool = False
    admitted: int = 0
    broken: str | None = None
    first_lost: int = 0

    def has_lost(self, chunk: int) -> bool:
        """Whether a chunk cannot be run, since one before it was not."""
        return self.broken is not None and chunk >= self.first_lost

    def error(self) -> StreamError:
        """For a chunk of a broken stream."""
        return StreamError(f"stream {self.name!r} {self.broken}.")


class StreamTable:
    """The streams of one model, least recently used first.

    Not thread-safe, and without a clock: its user holds a lock and tells it the time.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._live: OrderedDict[int | str, Stream] = OrderedDict()
        self._reasons: OrderedDict[int | str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, name: object) -> bool:
        return name in self._live

    def admit(self, name: int | str, rows: int, *, start: bool, end: bool, now: float) -> Stream:
        """Find or start the stream of a chunk, which waits from now on.

        With `end` the stream leaves the table at once: no further chunk is admitted, while this one still waits.

        Raises:
            StreamError: unknown or gone; or started while it is live, if restarts are refused.
            InputError: the chunk's rows differ from those of the chunks before.
            BusyError: a new stream, and the table is full of streams in use.
        """
        self.expire(now)
        stream = self._start(name, rows, now) if start else self._find(name)
        if stream.rows != rows:
            raise InputError(
                f"stream {name!r} has {stream.rows} rows, this chunk has {rows}; a stream keeps its rows."
            )
        stream.waiting += 1
        stream.admitted += 1
        self._use(stream, now)
        if end:
            self._drop(stream, "has ended; start it again to use its id again")
        return stream

    def answered(self, stream: Stream, now: float) -> None:
        """Note that a chunk of it has been answered."""
        stream.waiting -= 1
        self._use(stream, now)

    def fail(self, stream: Stream, chunk: int, reason: str) -> None:
        """End a stream of which a chunk is not run: those after it have no state to start from.

        Args:
            chunk: its number among those of the stream.
        """
        if stream.broken is None or chunk < stream.first_lost:
            stream.broken = f"was ended: {reason}; start it again"
            stream.first_lost = chunk
        # By now another stream may have the name.
        if self._live.get(stream.name) is stream:
            self._drop(stream, stream.broken)

    def end(self, reason: str, name: int | str | None = None) -> list[int | str]:
        """End all streams, or the one of this name; chunks of them that wait are still answered.

        Returns:
            The names of those that ended.
        """
        ended = [stream for stream in self._live.values() if name in (None, stream.name)]
        for stream in ended:
            self._drop(stream, reason)
        return [stream.name for stream in ended]

    def ended(self) -> dict[int | str, str]:
        """Streams that are gone -> why; the latest of them."""
        return dict(self._reasons)

    def expire(self, now: float) -> None:
        """Drop the streams that have been idle for too long."""
        idle = []
        for stream in self._live.values():
            # The table is in the order of last use: none that follows is idle for longer.
            if stream.last_used + self._limits.stream_idle > now:
                break
            if not stream.waiting:
                idle.append(stream)
        for stream in idle:
            self._drop(
                stream,
                f"expired after {self._limits.stream_idle:g} s without a chunk; start it again",
            )

    def next_expiry(self) -> float | None:
        """When the next one may expire; None if none may. One whose chunks wait does not."""
        oldest = next((stream for stream in self._live.values() if not stream.waiting), None)
        return None if oldest is None else oldest.last_used + self._limits.stream_idle

    def _use(self, stream: Stream, now: float) -> None:
        stream.last_used = now
        if self._live.get(stream.name) is stream:
            self._live.move_to_end(stream.name)

    def _find(self, name: int | str) -> Stream:
        if name not in self._live:
            reason = self._reasons.get(name, "is unknown; send its first chunk with `start`")
            raise StreamError(f"stream {name!r} {reason}.")
        return self._live[name]

    def _start(self, name: int | str, rows: int, now: float) -> Stream:
        if name in self._live:
            if self._limits.refuse_restart:
                raise StreamError(
                    f"stream {name!r} has already started; end it first, or use another id."
                )
            # Its chunks that wait go on with its states: they have it, though the table does not.
            self._drop(self._live[name], "was started again")
        if len(self._live) >= self._limits.max_streams:
            self._make_room(now)
        self._reasons.pop(name, None)
        self._live[name] = Stream(name, rows, now)
        return self._live[name]

    def _make_room(self, now: float) -> None:
        """Evict the stream that has been idle longest, if that is long enough."""
        idle = (stream for stream in self._live.values() if not stream.waiting)
        oldest = next(idle, None)
        if oldest is None or oldest.last_used + self._limits.stream_keep > now:
            raise BusyError(
                f"{len(self._live)} streams are live, which is the limit; end some, or try again later."
            )
        self._drop(
            oldest,
            f"was evicted for a new one, since {self._limits.max_streams} is the limit; start it again",
        )

    def _drop(self, stream: Stream, reason: str) -> None:
        del self._live[stream.name]
        self._reasons[stream.name] = reason
        self._reasons.move_to_end(stream.name)
        if len(self._reasons) > MAX_REASONS:
            self._reasons.popitem(last=False)
