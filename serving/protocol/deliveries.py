"""Results of another thread for an event loop: those of one run are handed over together."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar

from deploy_rnn.errors import ClosedError, DeadlineError

Result = TypeVar("Result")


class Delivery(Generic[Result]):
    """A result that an event loop waits for. Whoever is told asks for it, once.

    Args:
        future: gets it, in any thread.
        tell: called on the loop once, when `result` has it or says why there is none.
        seconds: for which the loop waits.
        ends_at: when it stops waiting, by the loop's clock.
    """

    __slots__ = ("_future", "_is_late", "_seconds", "ends_at", "tell")

    def __init__(
        self,
        future: "Future[Result]",
        tell: "Callable[[Delivery[Result]], None]",
        seconds: float,
        ends_at: float,
    ) -> None:
        self.tell = tell
        self.ends_at = ends_at
        self._future: Future[Result] | None = future
        self._seconds = seconds
        self._is_late = False

    def give_up(self, *, late: bool = False) -> None:
        """Nobody waits any more; `late`: since it took too long."""
        self._is_late = late
        if self._future is not None:
            self._future.cancel()

    def result(self) -> Result:
        """
        Raises:
            DeadlineError: there was none in time.
            ClosedError: the future was cancelled by others.
            Exception: that of the future.
        """
        if self._is_late:
            raise DeadlineError(f"the answer took more than {self._seconds:g} s.")
        future = self._future
        assert future is not None, "it is asked for once"
        # The future knows this delivery: in a circle, both would stay in memory until garbage is collected.
        self._future = None
        try:
            return future.result()
        except CancelledError:
            raise ClosedError("the request was cancelled.") from None


class Deliveries:
    """Wakes an event loop once for all results that are there when it awakes.

    `asyncio.wrap_future` would wake it once for each. A wake-up is a system call, during which the thread that has the
    results gives way to the loop, and has to wait for its next turn.

    Args:
        seconds: for which each result is waited for. All wait equally long, so that one timer is enough.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self._seconds = seconds
        # What is waited for, in the order in which the time for it ends.
        self._waiting: dict[Delivery[Any], None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ready: deque[Delivery[Any]] = deque()
        self._awaking = False

    def expect(
        self, future: "Future[Result]", tell: Callable[[Delivery[Result]], None]
    ) -> Delivery[Result]:
        """Have `tell` called on the loop with what becomes of a future, unless it is dropped before."""
        delivery = Delivery(future, tell, self._seconds, self.loop.time() + self._seconds)
        self._waiting[delivery] = None
        if self._timer is None:
            self._timer = self.loop.call_at(delivery.ends_at, self._end_late)
        future.add_done_callback(lambda _: self._deliver(delivery))
        return delivery

    def drop(self, delivery: Delivery[Any]) -> None:
        """Wait no more for a result, and cancel what has not begun."""
        if delivery in self._waiting:
            del self._waiting[delivery]
            delivery.give_up()

    async def wait(self, future: "Future[Result]") -> Result:
        """The result of `future`; who stops waiting cancels it.

        Raises:
            DeadlineError, ClosedError, Exception: as `Delivery.result`.
        """
        waiter: asyncio.Future[None] = self.loop.create_future()

        def tell(_: Delivery[Result]) -> None:
            if not waiter.done():
                waiter.set_result(None)

        delivery = self.expect(future, tell)
        try:
            await waiter
        except asyncio.CancelledError:
            self.drop(delivery)
            raise
        return delivery.result()

    def _deliver(self, delivery: Delivery[Any]) -> None:
        """Called in any thread."""
        self._ready.append(delivery)
        # In this order: whoever awakes the loop says so no longer before it looks for what is ready.
        if not self._awaking:
            self._awaking = True
            try:
                self.loop.call_soon_threadsafe(self._tell_ready)
            except RuntimeError:
                if not self.loop.is_closed():  # then nobody waits any more
                    raise

    def _tell_ready(self) -> None:
        self._awaking = False
        while self._ready:
            self._tell(self._ready.popleft())

    def _tell(self, delivery: Delivery[Any]) -> None:
        if delivery not in self._waiting:
            return  # it was dropped, or too late
        del self._waiting[delivery]
        try:
            delivery.tell(delivery)
        except Exception as error:  # the others are told all the same
            context = {"message": "an answer was not handed over", "exception": error}
            self.loop.call_exception_handler(context)

    def _end_late(self) -> None:
        """End the wait for what has taken too long, and set the timer for the next."""
        self._timer = None
        now = self.loop.time()
        while self._waiting:
            oldest = next(iter(self._waiting))
            if oldest.ends_at > now:
                self._timer = self.loop.call_at(oldest.ends_at, self._end_late)
                break
            oldest.give_up(late=True)
            self._tell(oldest)
