"""The calls that are under way: how many there may be, and how they end when the server stops."""

import asyncio

from deploy_rnn.errors import BusyError, ClosedError

STOPPING = "the server is stopping."


class Calls:
    """The calls of a server, but for those that ask about its health. Used on one event loop.

    Args:
        most: calls at a time.

    Attributes:
        draining: whether new calls are refused.
        cut_short: whether the calls that were left have been cancelled.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: set[asyncio.Task[object]] = set()
        self._ended = asyncio.Event()
        self._released: asyncio.Event | None = None
        self.draining = False
        self.cut_short = False

    def enter(self) -> None:
        """Give the call that the current task handles a place, until its last byte has been taken by its client.

        Raises:
            BusyError: all places are taken.
            ClosedError: the server is stopping, and the call is new.
        """
        if self.draining:
            raise ClosedError(STOPPING)
        if len(self._tasks) >= self._most:
            raise BusyError(
                f"{self._most} calls are under way, which is the server's limit; try again later."
            )
        task = asyncio.current_task()
        assert task is not None, "a call is handled in a task"
        self._tasks.add(task)
        # The task of gRPC: it goes on after the handler has returned, and sends what that returned.
        task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        self._ended.set()

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
            await self._released.wait()

    async def wait(self, seconds: float) -> None:
        """Wait until no call is left, for at most `seconds`; then cancel those that are."""
        try:
            async with asyncio.timeout(seconds):
                while self._tasks:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            self.cut_short = True
            for task in self._tasks:
                task.cancel()
