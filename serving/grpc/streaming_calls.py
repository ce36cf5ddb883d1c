"""Streaming calls: requests are submitted in the order in which they arrive, and answered in that order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from deploy_rnn.errors import ClosedError

from ..protocol.inference import Submitted

# Requests of one call that may be submitted and not answered. Enough to keep a model busy; beyond them the server stops
# reading, and gRPC's flow control holds the client back.
MAX_UNANSWERED = 64

Outcome = Submitted | Exception
"""What became of the submission of a message."""


@dataclass
class StreamingCall:
    """One streaming call.

    Attributes:
        outcomes: message and outcome, in order; None after the last.
        slots: one for each request that may be unanswered.
    """

    outcomes: "asyncio.Queue[tuple[Any, Outcome] | None]"
    slots: asyncio.Semaphore


class StreamingCalls:
    """The streaming calls of a server.

    Args:
        submit: hands a message to its model.
        answer: message, its outcome -> the answer.
    """

    def __init__(
        self,
        submit: Callable[[Any], Awaitable[Submitted]],
        answer: Callable[[Any, Outcome], Awaitable[Any]],
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

    async def answers(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """An answer to each of `messages`, in order."""
        call = StreamingCall(asyncio.Queue(), asyncio.Semaphore(MAX_UNANSWERED))
        reader = asyncio.create_task(self._read(messages, call))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        try:
            while (item := await call.outcomes.get()) is not None:
                message, outcome = item
                yield await self._answer(message, outcome)
                call.slots.release()
        finally:
            reader.cancel()
            _cancel_unanswered(call)

    async def _read(self, messages: AsyncIterator[Any], call: StreamingCall) -> None:
        try:
            await call.slots.acquire()
            async for message in messages:
                await self._submit_message(message, call)
                await call.slots.acquire()
        except asyncio.CancelledError:
            pass  # the server is draining, or the client has left
        finally:
            call.outcomes.put_nowait(None)

    async def _submit_message(self, message: Any, call: StreamingCall) -> None:
        try:
            outcome: Outcome = await self._submit(message)
        except asyncio.CancelledError:
            # The message was read, so that it has to be answered.
            call.outcomes.put_nowait(
                (message, ClosedError("the server is stopping; this request was not run."))
            )
            raise
        except Exception as error:
            outcome = error
        call.outcomes.put_nowait((message, outcome))


def _cancel_unanswered(call: StreamingCall) -> None:
    """The client has left: requests that are not running yet need not run."""
    while not call.outcomes.empty():
        item = call.outcomes.get_nowait()
        if item is None:
            continue
        _, outcome = item
        if isinstance(outcome, Submitted):
            outcome.future.cancel()
