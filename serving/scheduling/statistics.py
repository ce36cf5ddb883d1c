"""`Statistics`: what a model has done so far."""

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

from deploy_rnn.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    InputError,
    StreamError,
    TooLargeError,
)

DURATION_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds, in seconds, of the buckets of `Durations`; a last bucket has all that is longer."""

# The first row whose class fits counts.
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (InputError, "bad_input"),
    (TooLargeError, "too_large"),
    (StreamError, "stream"),
    (BusyError, "busy"),
    (ClosedError, "closed"),
    (DeadlineError, "deadline"),
    (CancelledError, "cancelled"),
)
_OTHER_REASON = "run_error"

REASONS = (*(reason for _, reason in _REASONS), _OTHER_REASON)
"""Why requests fail, as `Statistics.failure_reasons` has them."""


def reason_of(error: BaseException) -> str:
    """The one of `REASONS` that an error is counted as."""
    for error_class, reason in _REASONS:
        if isinstance(error, error_class):
            return reason
    return _OTHER_REASON


@dataclass(frozen=True)
class Durations:
    """A histogram of seconds.

    Attributes:
        counts: how many there were in each bucket, one more than `DURATION_BOUNDS`; a bound ends its bucket.
        seconds: their sum.
    """

    counts: Sequence[int] = (0,) * (len(DURATION_BOUNDS) + 1)
    seconds: float = 0.0


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
        failure_reasons: one of `REASONS` -> how many of `failures`; those without any are left out.
        queue_durations: of the requests that were answered, until their run began.
        run_durations: of these requests, their run.
        request_durations: of these requests, from when the model accepted them to the end of their run.
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
    failure_reasons: Mapping[str, int] = field(default_factory=dict)
    queue_durations: Durations = Durations()
    run_durations: Durations = Durations()
    request_durations: Durations = Durations()


@dataclass
class DurationTally:
    """The counts behind `Durations`."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BOUNDS) + 1))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(DURATION_BOUNDS, seconds)] += 1
        self.seconds += seconds

    def snapshot(self) -> Durations:
        return Durations(tuple(self.counts), self.seconds)


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
    failure_reasons: dict[str, int] = field(default_factory=dict)
    queue_durations: DurationTally = field(default_factory=DurationTally)
    run_durations: DurationTally = field(default_factory=DurationTally)
    request_durations: DurationTally = field(default_factory=DurationTally)

    def ran(self, rows: int, seconds: float, real_steps: int, padded_steps: int) -> None:
        """Count a run."""
        runs, total_seconds = self.batch_rows.get(rows, (0, 0.0))
        self.batch_rows[rows] = (runs + 1, total_seconds + seconds)
        self.executions += 1
        self.compute_seconds += seconds
        self.steps_real += real_steps
        self.steps_padded += padded_steps
        self.last_inference = time.time()

    def answered(self, rows: int, queued: float, computed: float) -> None:
        """Count a request that was answered, after `queued` seconds of waiting and a run of `computed` seconds."""
        self.successes += 1
        self.rows += rows
        self.queue_seconds += queued
        self.queue_durations.add(queued)
        self.run_durations.add(computed)
        self.request_durations.add(queued + computed)

    def failed(self, error: BaseException) -> None:
        """Count a request that was refused, failed, or dropped."""
        reason = reason_of(error)
        self.failures += 1
        self.failure_reasons[reason] = self.failure_reasons.get(reason, 0) + 1

    def snapshot(self, *, queued: int, streams: int) -> Statistics:
        # What goes on counting is copied.
        copies = {
            "batch_rows": dict(self.batch_rows),
            "failure_reasons": dict(self.failure_reasons),
            "queue_durations": self.queue_durations.snapshot(),
            "run_durations": self.run_durations.snapshot(),
            "request_durations": self.request_durations.snapshot(),
        }
        return Statistics(**vars(self) | copies, queued=queued, streams=streams)
