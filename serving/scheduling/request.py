"""`Request` and `Response`: what a model is asked, and what it answers, whatever protocol carries them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Request:
    """One question to a model; every tensor is batch-first: (B, T, ...), states (B, ...).

    It means the same in every process: it names nothing of the one that made it.

    Attributes:
        inputs: name -> array. The model has its own copy of them as soon as it has accepted the request.
        outputs: the names wanted; None for all.
        sequence: the stream that it belongs to, whose states the server holds; None for no stream.
        start: whether the stream begins here.
        end: whether it ends here.
        timeout: seconds that the client will wait, from when the model accepts the request; None for no limit.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...] | None = None
    sequence: int | str | None = None
    start: bool = False
    end: bool = False
    timeout: float | None = None

    def with_inputs(
        self, inputs: Mapping[str, np.ndarray], timeout: float | None = None
    ) -> "Request":
        """The same question about other inputs.

        Args:
            timeout: in place of its own; None for its own.
        """
        if timeout is None:
            timeout = self.timeout
        # For each request of a server: `dataclasses.replace` takes twice as long.
        return Request(inputs, self.outputs, self.sequence, self.start, self.end, timeout)


@dataclass(frozen=True)
class Response:
    """The answer.

    Attributes:
        outputs: name -> array, batch-first.
        queued: seconds until its run began.
        computed: seconds of that run.
        rows: rows that shared it, those of other requests included.
    """

    outputs: Mapping[str, np.ndarray]
    queued: float
    computed: float
    rows: int
