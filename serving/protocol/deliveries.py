"""Results of another thread for an event loop: those of one run are handed over together."""

import asyncio
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import TypeVar

from deploy_rnn.errors import ClosedError, DeadlineError

Result = TypeVar("Result")


class Deliveries:
    """Wakes an event loop once for all results that are there when it awakes.

    `asyncio.wrap_future` would wake it once for each. A wake-up is a system call, during which the thread that has the
    results gives way to the loop, and has to wait for its next turn.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ready: deque[asyncio.Future[None]] = deque()
        self._awaking = False

    async def wait(self, future: "Future[Result]", seconds: float) -> Result:
        """The result of `future`, on this loop; who stops waiting cancels it.

        Raises:
            DeadlineError: there was none within `seconds`.
            ClosedError: it was cancelled by others.
            Exception: that of the future.
        """
        waiter: asyncio.Future[None] = self.loop.create_future()
        future.add_done_callback(lambda _: self._deliver(waiter))
        timer = self.loop.call_later(seconds, _give_up, waiter, seconds)
        try:
            await waiter
        except (asyncio.CancelledError, DeadlineError):
            future.cancel()
            raise
        finally:
            timer.cancel()
        try:
            return future.result()
        except CancelledError:
            raise ClosedError("the request was cancelled.") from None

    def _deliver(self, waiter: "asyncio.Future[None]") -> None:
        """Called in any thread."""
        self._ready.append(waiter)
        # In this order: whoever awakes the loop says so no longer before it looks for what is ready.
        if not self._awaking:
            self._awaking = True
            try:
                self.loop.call_soon_threadsafe(self._tell)
            except RuntimeError:
                if not self.loop.is_closed():  # then nobody waits any more
                    raise

    def _tell(self) -> None:
        self._awaking = False
        while self._ready:
            waiter = self._ready.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _give_up(waiter: "asyncio.Future[None]", seconds: float) -> None:
    if not waiter.done():
        waiter.set_exception(DeadlineError(f"the answer took more than {seconds:g} s."))
