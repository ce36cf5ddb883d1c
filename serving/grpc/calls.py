"""The calls that are under way: how many there may be, and how they end when the server stops."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from deploy_rnn.errors import BusyError, ClosedError

STOPPING = "the server is stopping."

MIN_UNREAD_RATE = 64 * 1024
"""Bytes of an answer that a client has to take in each second."""

SWEEP_SECONDS = 0.5
"""How often clients that do not read are looked for, at most: it takes longer the more files are open."""


@dataclass
class Call:
    """A call that is under way.

    Attributes:
        peer: its connection, as gRPC names it.
        read_by: when its client should have read all that was sent; infinite while nothing is being sent.
        sent_at: when that was sent.
        unread_bytes: how much that is.
    """

    peer: str
    read_by: float = float("inf")
    sent_at: float = float("inf")
    unread_bytes: int = 0


class Calls:
    """The calls of a server, but for those that ask about its health. Used on one event loop.

    Args:
        most: calls at a time.
        unread_seconds: time for a client to begin to read an answer.
        max_unread_bytes: of the answers of all calls; with more, those that have waited longest are dropped, if that
            is `unread_seconds` or more.
        disconnect: ends the connection of a peer, and with it all its calls.

    Attributes:
        draining: whether new calls are refused.
        cut_short: whether the calls that were left have been cancelled.
    """

    def __init__(
        self,
        most: int,
        unread_seconds: float,
        max_unread_bytes: int,
        disconnect: Callable[[str], None],
    ) -> None:
        self._most = most
        self._unread_seconds = unread_seconds
        self._max_unread_bytes = max_unread_bytes
        self._unread_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._disconnect = disconnect
        self._calls: dict[asyncio.Task[object], Call] = {}
        self._ended = asyncio.Event()
        self._next_sweep = 0.0
        self._released: asyncio.Event | None = None
        self._arrived = asyncio.Event()
        self.draining = False
        self.cut_short = False

    def __len__(self) -> int:
        return len(self._calls)

    def enter(self, peer: str) -> None:
        """Give the call that the current task handles a place, until its last byte has been taken by its client.

        Raises:
            BusyError: all places are taken.
            ClosedError: the server is stopping, and the call is new.
        """
        if self.draining:
            raise ClosedError(STOPPING)
        if len(self._calls) >= self._most:
            self._drop_unread()
            raise BusyError(
                f"{self._most} calls are under way, which is the server's limit; try again later."
            )
        task = asyncio.current_task()
        assert task is not None, "a call is handled in a task"
        self._calls[task] = Call(peer)
        # The task of gRPC: it goes on after the handler has returned, and sends what that returned.
        task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[object]) -> None:
        self._unread_bytes -= self._calls.pop(task).unread_bytes
        self._ended.set()

    def seconds_to_read(self, size: int) -> float:
        """How long a client may take to read `size` bytes."""
        return self._unread_seconds + size / MIN_UNREAD_RATE

    def sending(self, size: int) -> None:
        """The current task sends `size` bytes, which may be the last of its call."""
        call = self._calls.get(asyncio.current_task())  # type: ignore[arg-type]
        if call is None:
            return
        call.sent_at = time.monotonic()
        call.read_by = call.sent_at + self.seconds_to_read(size)
        self._unread_bytes += size - call.unread_bytes
        call.unread_bytes = size
        if self._timer is None:
            self._free_memory()

    def sent(self) -> None:
        """The client has taken what the current task was sending."""
        call = self._calls.get(asyncio.current_task())  # type: ignore[arg-type]
        if call is not None:
            call.read_by = call.sent_at = float("inf")
            self._unread_bytes -= call.unread_bytes
            call.unread_bytes = 0

    def _free_memory(self) -> None:
        """Drop connections whose answers have waited longest, while there is too much; if need be, look again."""
        self._timer = None
        excess = self._unread_bytes - self._max_unread_bytes
        if excess <= 0:
            return
        sent_before = time.monotonic() - self._unread_seconds
        dropped: set[str] = set()
        for call in sorted(self._calls.values(), key=attrgetter("sent_at")):
            if excess <= 0 or call.sent_at > sent_before:
                break
            excess -= call.unread_bytes
            dropped.add(call.peer)
        for peer in dropped:
            self._disconnect(peer)
        self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._free_memory)

    def _drop_unread(self) -> None:
        """Drop the connection with the most answers that nobody reads: they take the places of others.

        Only where places are needed: a proxy may have put calls of many clients on one connection.
        """
        now = time.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_SECONDS
        unread = Counter(call.peer for call in self._calls.values() if call.read_by < now)
        for peer, _ in unread.most_common(1):
            self._disconnect(peer)

    def hold(self) -> None:
        """Let new calls wait for `release` before they are refused: whoever is told at once may ask again at once, and
        calls that arrive in the moment in which gRPC stops are CANCELLED, after which no client asks again."""
        self._released = asyncio.Event()

    def release(self) -> None:
        if self._released is not None:
            self._released.set()

    async def released(self) -> None:
        """Wait as long as new calls are held."""
        if self._released is not None:
            self._arrived.set()
            await self._released.wait()

    async def quiet(self, seconds: float, most: float) -> None:
        """Wait until no call has arrived for `seconds`; for at most `most` in all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most):
                while True:
                    self._arrived.clear()
                    # Not `wait_for`: in Python 3.11 that may lose the end of `most`.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await self._arrived.wait()
                    if not self._arrived.is_set():
                        return

    async def wait(self, seconds: float) -> None:
        """Wait until no call is left, for at most `seconds`; then cancel those that are."""
        sweeper = asyncio.create_task(self._sweep())
        try:
            async with asyncio.timeout(seconds):
                while self._calls:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            self.cut_short = True
            for task in self._calls:
                task.cancel()
        finally:
            sweeper.cancel()

    async def _sweep(self) -> None:
        while True:
            self._drop_unread()
            await asyncio.sleep(SWEEP_SECONDS)
