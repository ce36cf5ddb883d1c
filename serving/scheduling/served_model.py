"""`ServedModel`: what a server needs of a model; `Model` is the one of this process."""

from collections.abc import Collection, Mapping, Set
from concurrent.futures import Future
from typing import Protocol

from deploy_rnn.tensor_spec import TensorSpec

from .request import Request, Response
from .statistics import Statistics


class ServedModel(Protocol):
    """All that the repository and the protocols use of a model, so that another process may stand behind it.

    Thread-safe.

    Attributes:
        name: under which it is served.
        inputs, outputs: batch-first; a dynamic axis has a name instead of a size.
        optional: names of the inputs that a client may leave out.
        streaming: whether it holds the states of streams.
        states: names of the inputs that carry a state -> the outputs that give it; empty if it has none.
        max_batch: rows that one run takes; 0 if its tensors have no batch axis.
        precision: in which it computes, such as "int8".
    """

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def optional(self) -> Set[str]: ...

    @property
    def streaming(self) -> bool: ...

    @property
    def states(self) -> Mapping[str, str]: ...

    @property
    def max_batch(self) -> int: ...

    @property
    def precision(self) -> str: ...

    def submit(self, request: Request) -> "Future[Response]":
        """Accept a request, and return at once.

        Raises:
            InputError, StreamError, BusyError: the request is refused.
            ClosedError: `close` has been called; a repository then asks the model's successor.
        """

    def holds(self, sequence: int | str) -> bool:
        """Whether this stream lives here."""

    def statistics(self) -> Statistics:
        """What the model has done so far."""

    def retire(self) -> None:
        """Take only chunks of the streams that live here from now on; any other request gets a ClosedError."""

    def end_streams(self, reason: str, sequence: int | str | None = None) -> Collection[int | str]:
        """End all streams, or the one of this name; their chunks that were accepted are answered, further ones are
        refused: "stream NAME {reason}."

        Returns:
            The names of the streams that ended.
        """

    def ended_streams(self) -> Mapping[int | str, str]:
        """Streams that have ended or expired -> why, as for `end_streams`; the latest of them."""

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, and answer those that were accepted, for at most `timeout` seconds."""
