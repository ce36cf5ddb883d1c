"""`RoutedModel`: a model of this replica, of which the streams may live in others."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

from deploy_rnn.errors import BusyError, ClosedError, DeployError, StreamError
from deploy_rnn.tensor_spec import TensorSpec

from ..protocol.stream_header import header_value
from ..scheduling.request import Request, Response
from ..scheduling.served_model import ServedModel
from ..scheduling.statistics import Statistics
from .ledger import Ledger
from .owners import BEGIN, CONFIRM, END, Claim

routed_by: ContextVar[str] = ContextVar("routed_by", default="")
"""The session by which Ray has routed the request that is being handled to this replica; "" for none."""

MOVED = (
    "is not on this replica any more: replicas have come or gone, or the record of streams was lost; "
    "start it again"
)

UNCONFIRMED = "was ended: the record of which replica has it cannot be reached; start it again"

MAX_FORWARDED = 512
"""Requests of this replica that others answer. Each has two places, here and there; so some are left for the others."""

Send = Callable[[str, str, Request], Awaitable[Response]]
"""Name of a model, session, request -> the answer of the replica to which Ray routes the session.

Raises:
    DeployError: the request was refused, or has failed.
"""


class RoutedModel:
    """A `ServedModel`. Requests without a stream are for the model here. So are chunks that Ray has routed by their
    stream; it is asked to route the others, whose id stood in a body, which it does not read.

    Used on one event loop.

    Args:
        model: of this replica.
        ledger: says whether this replica still has a stream.
        send: asks the replica that a stream is routed to.
    """

    def __init__(self, model: ServedModel, ledger: Ledger, send: Send) -> None:
        self._model = model
        self._ledger = ledger
        self._send = send
        self._forwarded = 0
        # Stream -> the end of its latest chunk that was sent elsewhere: the next waits for it.
        self._tails: dict[int | str, asyncio.Future[None]] = {}
        # Stream -> the token of its beginning here.
        self._tokens: dict[int | str, str] = {}

    def submit(self, request: Request) -> "Future[Response]":
        if request.sequence is None:
            return self._model.submit(request)
        if routed_by.get() == header_value(request.sequence):
            return self.submit_here(request)
        if self._forwarded >= MAX_FORWARDED:
            raise BusyError(
                f"{MAX_FORWARDED} chunks of streams of other replicas are under way, which is the limit; try again "
                f"later, or send the header `x-session-id: {header_value(request.sequence)}`."
            )
        return asyncio.run_coroutine_threadsafe(
            self._forward(request, request.sequence), asyncio.get_running_loop()
        )

    def submit_here(self, request: Request) -> "Future[Response]":
        """A chunk whose stream is routed to this replica.

        Raises:
            InputError, StreamError, BusyError, ClosedError: as `ServedModel.submit`.
        """
        sequence = request.sequence
        assert sequence is not None, "a chunk has a stream"
        answer = self._model.submit(request)
        if request.start:
            self._forget_some()
            self._tokens[sequence] = uuid4().hex
        # The model has the stream, so it has begun here.
        token = self._tokens[sequence]
        stream = (self._model.name, sequence)
        confirmed = [self._ledger.claim(Claim(BEGIN if request.start else CONFIRM, stream, token))]
        if request.end:
            confirmed.append(self._ledger.claim(Claim(END, stream, token)))
        return asyncio.run_coroutine_threadsafe(
            self._confirmed(sequence, token, answer, confirmed), asyncio.get_running_loop()
        )

    async def _confirmed(
        self,
        sequence: int | str,
        token: str,
        answer: "Future[Response]",
        claims: "list[asyncio.Future[bool]]",
    ) -> Response:
        """The answer, if the stream is of this replica."""
        try:
            owned = all(await asyncio.gather(*claims))
        except asyncio.CancelledError:
            answer.cancel()
            raise
        except Exception:
            self._end(sequence, token, UNCONFIRMED)
            raise ClosedError(f"stream {sequence!r} {UNCONFIRMED}.") from None
        if not owned:
            self._end(sequence, token, MOVED)
            raise StreamError(f"stream {sequence!r} {MOVED}.")
        return await asyncio.wrap_future(answer)

    def _end(self, sequence: int | str, token: str, reason: str) -> None:
        """End the stream here, if it has not begun anew meanwhile."""
        if self._tokens.get(sequence) == token:
            self._model.end_streams(reason, sequence)
            del self._tokens[sequence]

    def _forget_some(self) -> None:
        """Forget the tokens of streams that have ended or expired, now and then."""
        if len(self._tokens) > 2 * self._model.statistics().streams + 1000:
            self._tokens = {
                sequence: token
                for sequence, token in self._tokens.items()
                if self._model.holds(sequence)
            }

    async def _forward(self, request: Request, sequence: int | str) -> Response:
        """Have another replica answer a chunk, once it has answered the one before."""
        earlier = self._tails.get(sequence)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tails[sequence] = done
        self._forwarded += 1
        try:
            if earlier is not None:
                await earlier
            return await self._send(self._model.name, header_value(sequence), request)
        finally:
            self._forwarded -= 1
            done.set_result(None)
            if self._tails.get(sequence) is done:
                del self._tails[sequence]

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._model.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._model.outputs

    @property
    def optional(self) -> Set[str]:
        return self._model.optional

    @property
    def streaming(self) -> bool:
        return self._model.streaming

    @property
    def states(self) -> Mapping[str, str]:
        return self._model.states

    @property
    def max_batch(self) -> int:
        return self._model.max_batch

    @property
    def precision(self) -> str:
        return self._model.precision

    def holds(self, sequence: int | str) -> bool:
        return self._model.holds(sequence)

    def statistics(self) -> Statistics:
        return self._model.statistics()

    def retire(self) -> None:
        self._model.retire()

    def end_streams(self, reason: str, sequence: int | str | None = None) -> Collection[int | str]:
        return self._model.end_streams(reason, sequence)

    def ended_streams(self) -> Mapping[int | str, str]:
        return self._model.ended_streams()

    def close(self, timeout: float | None = None) -> None:
        self._model.close(timeout)


def outcome_or_raise(outcome: Any) -> Response:
    """What `Replica.chunk` has returned: an answer, or an error, which Ray would wrap if it were raised."""
    if isinstance(outcome, DeployError):
        raise outcome
    assert isinstance(outcome, Response)
    return outcome
