"""`StreamTable`: the states of the sequences that come in chunks, how long they are kept, and why one is gone."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deploy_rnn.errors import BusyError, InputError, StreamError

from .limits import Limits

REMEMBERED = 10_000
"""Streams that are gone and whose reason is still known; of others only that they are unknown."""


@dataclass(eq=False)
class Stream:
    """One sequence.

    Attributes:
        name: the client's id.
        rows: of each of its chunks.
        touched: when a chunk last came, or was answered.
        states: input -> what the chunk before gave, batch-first; empty before the first.
        waiting: chunks that came and are not answered.
        broken: why it cannot go on; None if it can.
    """

    name: int | str
    rows: int
    touched: float
    states: Mapping[str, np.ndarray] = field(default_factory=dict)
    waiting: int = 0
    broken: str | None = None


class StreamTable:
    """A table of streams, the one that was touched longest ago first. Its user holds a lock, and tells the time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._live: OrderedDict[int | str, Stream] = OrderedDict()
        self._gone: OrderedDict[int | str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, name: object) -> bool:
        return name in self._live

    def admit(self, name: int | str, rows: int, *, start: bool, end: bool, now: float) -> Stream:
        """The stream that a chunk belongs to, which waits from now on.

        Raises:
            StreamError: unknown, gone, or started twice.
            InputError: rows unlike those of the chunks before.
            BusyError: a new one, and the table is full of streams in use.
        """
        self.expire(now)
        stream = self._started(name, rows, now) if start else self._found(name)
        if stream.rows != rows:
            raise InputError(f"stream {name!r} has {stream.rows} rows, this chunk has {rows}; a stream keeps its rows.")
        stream.waiting += 1
        stream.touched = now
        self._live.move_to_end(name)
        if end:
            self._drop(stream, "has ended; start it again to use its id again")
        return stream

    def answered(self, stream: Stream, now: float) -> None:
        """A chunk of it has been answered."""
        stream.waiting -= 1
        stream.touched = now
        if self._live.get(stream.name) is stream:
            self._live.move_to_end(stream.name)

    def end(self, stream: Stream, why: str) -> None:
        """A chunk of it will not be run, so that those after it have no state to start from."""
        stream.broken = stream.broken or f"was ended: {why}; start it again"
        if self._live.get(stream.name) is stream:
            self._drop(stream, stream.broken)

    def expire(self, now: float) -> None:
        """Drop the streams that have been idle for too long."""
        for stream in list(self._idle(now)):
            self._drop(stream, f"expired after {self._limits.stream_idle:g} s without a chunk; start it again")

    def next_expiry(self) -> float | None:
        """When the next one may expire; None if there is no stream."""
        first = next(iter(self._live.values()), None)
        return None if first is None else first.touched + self._limits.stream_idle

    def _idle(self, now: float) -> list[Stream]:
        idle = []
        for stream in self._live.values():
            if stream.touched + self._limits.stream_idle > now:
                break
            if not stream.waiting:
                idle.append(stream)
        return idle

    def _found(self, name: int | str) -> Stream:
        if name not in self._live:
            why = self._gone.get(name, "is unknown; send its first chunk with `start`")
            raise StreamError(f"stream {name!r} {why}.")
        return self._live[name]

    def _started(self, name: int | str, rows: int, now: float) -> Stream:
        if name in self._live:
            raise StreamError(f"stream {name!r} has already started; end it first, or use another id.")
        if len(self._live) >= self._limits.max_streams:
            self._make_room(now)
        self._gone.pop(name, None)
        return self._live.setdefault(name, Stream(name, rows, now))

    def _make_room(self, now: float) -> None:
        """Evict the stream that has been idle longest, if it is not in use."""
        oldest = next((stream for stream in self._live.values() if not stream.waiting), None)
        if oldest is None or oldest.touched + self._limits.stream_keep > now:
            raise BusyError(
                f"{len(self._live)} streams are live, the most that are held; end some, or try again later."
            )
        self._drop(oldest, f"was evicted for a new one, {self._limits.max_streams} being held; start it again")

    def _drop(self, stream: Stream, why: str) -> None:
        del self._live[stream.name]
        self._gone[stream.name] = why
        self._gone.move_to_end(stream.name)
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
