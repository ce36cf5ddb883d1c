"""Streaming calls: requests are submitted in the order in which they arrive, and answered in that order."""

import asyncio
from collections import deque
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
        began: when the message was read, by `time.perf_counter`.
    """

    id: str
    model: str
    outcome: Submitted | Exception
    began: float


class Room:
    """How much of a call may be unanswered: `MAX_UNANSWERED` requests, of `max_bytes` in all but for the last."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._sizes: deque[int] = deque()
        self._grown = asyncio.Event()

    async def wait(self) -> None:
        """Wait until another message may be read."""
        while len(self._sizes) >= MAX_UNANSWERED or self._bytes >= self._max_bytes:
            self._grown.clear()
            await self._grown.wait()

    def take(self, size: int) -> None:
        """A message of `size` bytes was read."""
        self._sizes.append(size)
        self._bytes += size

    def give(self) -> None:
        """The oldest message was answered."""
        self._bytes -= self._sizes.popleft()
        self._grown.set()


@dataclass
class StreamingCall:
    """One streaming call.

    Attributes:
        read: gives the next message; None after the last.
        unanswered: in order; None, or an error that ends the call, after the last.
        room: for what may be unanswered.
    """

    read: Callable[[], Awaitable[bytes | None]]
    unanswered: "asyncio.Queue[Accepted | Exception | None]"
    room: Room


class StreamingCalls:
    """The streaming calls of a server.

    Args:
        submit: hands a message to its model; does not raise.
        answer: the answer to an accepted message.
        max_bytes: of the messages of a call that are not answered.
    """

    def __init__(
        self,
        submit: Callable[[bytes], Awaitable[Accepted]],
        answer: Callable[[Accepted], Awaitable[Any]],
        max_bytes: int,
    ) -> None:
        self._submit = submit
        self._answer = answer
        self._max_bytes = max_bytes
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
        call = StreamingCall(read, asyncio.Queue(), Room(self._max_bytes))
        reader = asyncio.create_task(self._read(call))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        try:
            while (item := await call.unanswered.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                await write(await self._answer(item))
                call.room.give()
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            _cancel_unanswered(call)

    async def _read(self, call: StreamingCall) -> None:
        end: Exception | None = None
        try:
            while (message := await call.read()) is not None:
                call.room.take(len(message))
                await self._submit_message(message, call)
                await call.room.wait()
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
