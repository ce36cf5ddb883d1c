"""Streaming calls: requests are handed on in the order in which they come, and answered in that order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from deploy_rnn.errors import ClosedError

from ..scheduling.request import Response

Begun = Future[Response] | Exception
Begin = Callable[[Any, float | None], Awaitable["Future[Response]"]]
Finish = Callable[[Any, Begun], Awaitable[Any]]

# Requests of one call that may be on their way. Enough to keep a model busy; a client that sends more is not read on.
AHEAD = 64


@dataclass
class Call:
    """One streaming call.

    Attributes:
        begun: message and what became of it, in order; None at the end.
        room: one for each request that may be on its way.
    """

    begun: "asyncio.Queue[tuple[Any, Begun] | None]"
    room: asyncio.Semaphore


class StreamingCalls:
    """The streaming calls of a server.

    Args:
        begin: hands a message to its model.
        finish: message, what `begin` gave or raised -> the answer.
    """

    def __init__(self, begin: Begin, finish: Finish) -> None:
        self._begin, self._finish = begin, finish
        self._readers: set[asyncio.Task[None]] = set()
        self.draining = False

    def drain(self) -> None:
        """Read no more messages; those that were read are answered, and the calls end."""
        self.draining = True
        for reader in self._readers:
            reader.cancel()

    async def answers(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """An answer to each of `messages`, in order."""
        call = Call(asyncio.Queue(), asyncio.Semaphore(AHEAD))
        reader = asyncio.create_task(self._read(messages, call))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        try:
            while (begun := await call.begun.get()) is not None:
                yield await self._finish(*begun)
                call.room.release()
        finally:
            reader.cancel()
            _abandon(call)

    async def _read(self, messages: AsyncIterator[Any], call: Call) -> None:
        try:
            await call.room.acquire()
            async for message in messages:
                await self._start(message, call)
                await call.room.acquire()
        except asyncio.CancelledError:
            pass  # drained, or the client has gone
        finally:
            call.begun.put_nowait(None)

    async def _start(self, message: Any, call: Call) -> None:
        try:
            call.begun.put_nowait((message, await self._begin(message, None)))
        except asyncio.CancelledError:
            call.begun.put_nowait((message, ClosedError("the server is stopping; this request was not run.")))
            raise
        except Exception as error:
            call.begun.put_nowait((message, error))


def _abandon(call: Call) -> None:
    """Nobody waits for the rest: do not run what has not been started."""
    while not call.begun.empty():
        begun = call.begun.get_nowait()
        if begun is not None and isinstance(begun[1], Future):
            begun[1].cancel()
