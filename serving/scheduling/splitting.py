"""`SplitJob`: a request of more rows than one run takes, whose rows run in several."""

from threading import Lock

import numpy as np

from deploy_rnn.errors import RunError

from ..engine.arrays import Outputs
from ..engine.feeds import Feeds
from .queue import Job
from .request import Response


class SplitJob(Job):
    """Waits in the queue as one request. A run takes its next piece, and the rest waits behind what has come meanwhile:
    others wait for a piece, and never for the whole.

    The outputs of the pieces are joined in the order of the rows. A piece that fails is the failure of the request.

    Args:
        job: the request, with all of its rows.
        pieces: in how many runs.
        shared_row: a row that every piece has to have in its run, since the sizes of the outputs depend on it; None if
            they do not.
    """

    def __init__(self, job: Job, pieces: int, shared_row: int | None = None) -> None:
        super().__init__(job.feeds, job.outputs, job.joins, job.arrived, job.deadline)
        self._shared_row = shared_row
        # Of equal size, but for one row: a last piece of few rows would take nearly as long as a full one.
        self._pieces = pieces
        self._taken = 0
        self._joined = 0
        self._joined_outputs: Outputs = {}
        self._first_started = float("inf")
        self._last_ended = 0.0
        self._most_shared = 0
        self._lock = Lock()

    @property
    def rows(self) -> int:
        """Of its next piece."""
        start, stop = self._bounds(self._taken)
        return stop - start + (self._shared_row is not None)

    @property
    def has_more(self) -> bool:
        return self._taken < self._pieces

    def claim_run(self) -> bool:
        """Whether somebody waits for it; it can be cancelled until its last piece has been answered."""
        return not self.future.cancelled()

    def next_run(self) -> "Piece":
        start, stop = self._bounds(self._taken)
        self._taken += 1
        rows: slice | np.ndarray = slice(start, stop)
        if self._shared_row is not None:
            rows = np.append(np.arange(start, stop), self._shared_row)
        return Piece(self, self.feeds.rows_of(rows), start, stop)

    def join(self, piece: "Piece", response: Response) -> Response | None:
        """Add the answer to a piece; the answer to the request, once all are there.

        Raises:
            RunError: an output whose size differs from piece to piece.
        """
        with self._lock:
            for name, part in response.outputs.items():
                self._write(name, part[: piece.stop - piece.start], piece)
            self._joined += 1
            self._first_started = min(self._first_started, response.queued)
            self._last_ended = max(self._last_ended, response.queued + response.computed)
            self._most_shared = max(self._most_shared, response.rows)
            if self._joined < self._pieces:
                return None
            computed = self._last_ended - self._first_started
            return Response(self._joined_outputs, self._first_started, computed, self._most_shared)

    def _bounds(self, number: int) -> tuple[int, int]:
        """The first row of a piece, and the first row of the next one."""
        rows = self.feeds.rows
        return number * rows // self._pieces, (number + 1) * rows // self._pieces

    def _write(self, name: str, part: np.ndarray, piece: "Piece") -> None:
        whole = self._joined_outputs.get(name)
        if whole is None:
            whole = np.empty((self.feeds.rows, *part.shape[1:]), part.dtype)  # (B, ...)
            self._joined_outputs[name] = whole
        if part.shape[1:] != whole.shape[1:]:
            raise RunError(
                f"output `{name}` has other sizes for rows {piece.start} to {piece.stop - 1} of the request than for "
                "its other rows, which run apart: send fewer rows at once."
            )
        whole[piece.start : piece.stop] = part


class Piece(Job):
    """Rows of a `SplitJob`, in a run."""

    def __init__(self, whole: SplitJob, feeds: Feeds, start: int, stop: int) -> None:
        super().__init__(feeds, whole.outputs, whole.joins, whole.arrived, whole.deadline)
        self._whole = whole
        self.start = start
        self.stop = stop

    @property
    def request(self) -> Job:
        return self._whole

    def collect(self, response: Response) -> Response | None:
        return self._whole.join(self, response)
