"""`Ledger`: a replica's way to `StreamOwners`. Claims that are made while others are under way go together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from .owners import Claim

Call = Callable[[Sequence[Claim]], Awaitable[Sequence[bool]]]
"""Sends claims to the owners, and returns their answers."""


class Ledger:
    """Used on one event loop. Claims are answered in the order in which they were made."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._waiting: list[tuple[Claim, asyncio.Future[bool]]] = []
        self._sender: asyncio.Task[None] | None = None

    def claim(self, claim: Claim) -> "asyncio.Future[bool]":
        """
        Returns:
            Whether this replica has the stream; or the error of a call that has failed.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((claim, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return future

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                answers = await self._call([claim for claim, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
