"""Streaming calls: requests are submitted in the order in which they arrive, and answered in that order."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..protocol.inference import Submitted

# Requests of one call that may be submitted and not answered. Enough to keep a model busy; beyond them the server stops
# reading, and gRPC's flow control holds the client back.
MAX_UNANSWERED = 64


@dataclass(frozen=True)
class Accepted:
    """A message that is to be answered.

    Attributes:
        id: the client's name for it; "" if it has none, or cannot be read.
        model: the name of the model that it asks.
        outcome: the request that the model has accepted, or why there is none.
    """

    id: str
    model: str
    outcome: Submitted | Exception


@dataclass
class StreamingCall:
    """One streaming call.

    Attributes:
        read: gives the next message; None after the last.
        unanswered: in order; None, or an error that ends the call, after the last.
        slots: one for each request that may be unanswered.
    """

    read: Callable[[], Awaitable[bytes | None]]
    unanswered: "asyncio.Queue[Accepted | Exception | None]"
    slots: asyncio.Semaphore


class StreamingCalls:
    """The streaming calls of a server.

    Args:
        submit: hands a message to its model; does not raise.
        answer: the answer to an accepted message.
    """

    def __init__(
        self,
        submit: Callable[[bytes], Awaitable[Accepted]],
        answer: Callable[[Accepted], Awaitable[Any]],
    ) -> None:
        self._submit = submit
        self._answer = answer
        self._readers: set[asyncio.Task[None]] = set()
        self.draining = False

    def drain(self) -> None:
        """Read no more messages; those that were read are answered, and the calls end."""
        self.draining = True
        for reader in self._readers:
            reader.cancel()

    async def handle(
        self,
        read: Callable[[], Awaitable[bytes | None]],
        write: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Answer every message of a call, in order.

        Args:
            read: gives the next message; None after the last.
            write: sends an answer.

        Raises:
            Exception: of `read`, after the answers to what was read before; or of `write`.
        """
        call = StreamingCall(read, asyncio.Queue(), asyncio.Semaphore(MAX_UNANSWERED))
        reader = asyncio.create_task(self._read(call))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        try:
            while (item := await call.unanswered.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                await write(await self._answer(item))
                call.slots.release()
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            _cancel_unanswered(call)

    async def _read(self, call: StreamingCall) -> None:
        end: Exception | None = None
        try:
            await call.slots.acquire()
            while (message := await call.read()) is not None:
                await self._submit_message(message, call)
                await call.slots.acquire()
        except asyncio.CancelledError:
            pass  # the server is draining, or the client has left
        except Exception as error:
            end = error
        finally:
            call.unanswered.put_nowait(end)

    async def _submit_message(self, message: bytes, call: StreamingCall) -> None:
        """Submit a message; one that was read is answered, whatever happens meanwhile."""
        submission = asyncio.ensure_future(self._submit(message))
        try:
            await asyncio.shield(submission)
        finally:
            call.unanswered.put_nowait(await submission)


def _cancel_unanswered(call: StreamingCall) -> None:
    """The client has left: requests that are not running yet need not run."""
    while not call.unanswered.empty():
        item = call.unanswered.get_nowait()
        if isinstance(item, Accepted) and isinstance(item.outcome, Submitted):
            item.outcome.future.cancel()
