"""`Statistics`: what a model has done so far."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Statistics:
    """A snapshot.

    Attributes:
        successes: requests that were answered.
        failures: requests that were refused, failed, or dropped.
        executions: runs.
        rows: rows of the requests that were answered.
        queue_seconds: sum over those requests, until their run began.
        compute_seconds: sum over runs.
        batch_rows: rows of a run -> (runs, their seconds).
        steps_real: rows times steps of the requests that were run.
        steps_padded: rows times steps that were run besides, as padding; waste is
            steps_padded / (steps_real + steps_padded).
        queued: requests that wait now.
        streams: streams that are held now.
        last_inference: seconds since the epoch at the end of the last run; None before the first.
    """

    successes: int
    failures: int
    executions: int
    rows: int
    queue_seconds: float
    compute_seconds: float
    batch_rows: Mapping[int, tuple[int, float]]
    steps_real: int
    steps_padded: int
    queued: int
    streams: int
    last_inference: float | None


@dataclass
class Tally:
    """The sums behind `Statistics`. Not thread-safe: its user holds a lock."""

    successes: int = 0
    failures: int = 0
    executions: int = 0
    rows: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    batch_rows: dict[int, tuple[int, float]] = field(default_factory=dict)
    steps_real: int = 0
    steps_padded: int = 0
    last_inference: float | None = None

    def ran(self, rows: int, seconds: float, real_steps: int, padded_steps: int) -> None:
        """Count a run."""
        runs, total_seconds = self.batch_rows.get(rows, (0, 0.0))
        self.batch_rows[rows] = (runs + 1, total_seconds + seconds)
        self.executions += 1
        self.compute_seconds += seconds
        self.steps_real += real_steps
        self.steps_padded += padded_steps
        self.last_inference = time.time()

    def answered(self, rows: int, queued: float) -> None:
        """Count a request that was answered, after `queued` seconds of waiting."""
        self.successes += 1
        self.rows += rows
        self.queue_seconds += queued

    def snapshot(self, *, queued: int, streams: int) -> Statistics:
        # The dictionary is copied, since the tally goes on counting.
        sums = vars(self) | {"batch_rows": dict(self.batch_rows)}
        return Statistics(**sums, queued=queued, streams=streams)
