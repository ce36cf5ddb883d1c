"""`Tally`: durations in buckets, and failures by reason."""

from concurrent.futures import CancelledError

import pytest

from deploy_rnn.errors import BusyError, DeadlineError, InputError, RunError, StreamError
from deploy_rnn.serving.scheduling.statistics import DURATION_BOUNDS, REASONS, Tally, reason_of


def test_a_bound_belongs_to_the_bucket_that_it_ends() -> None:
    tally = Tally()
    for queued in (0.0, 0.001, 0.0011, 60.0, 61.0):
        tally.answered(1, queued, 0.5)
    counts = tally.snapshot(queued=0, streams=0).queue_durations.counts
    assert len(counts) == len(DURATION_BOUNDS) + 1
    assert (counts[0], counts[1], counts[-2], counts[-1]) == (2, 1, 1, 1)


def test_a_request_takes_as_long_as_its_wait_and_its_run() -> None:
    tally = Tally()
    tally.answered(3, 0.25, 0.5)
    snapshot = tally.snapshot(queued=0, streams=0)
    tally.answered(3, 0.25, 0.5)
    assert snapshot.request_durations.seconds == 0.75
    assert snapshot.request_durations.counts[DURATION_BOUNDS.index(1.0)] == 1
    assert snapshot.run_durations.counts[DURATION_BOUNDS.index(0.5)] == 1
    assert sum(snapshot.run_durations.counts) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeadlineError("late"), "deadline"),
        (BusyError("full"), "busy"),
        (InputError("wrong"), "bad_input"),
        (StreamError("gone"), "stream"),
        (CancelledError(), "cancelled"),
        (RunError("broken"), "run_error"),
        (MemoryError(), "run_error"),
    ],
)
def test_every_failure_has_a_reason(error: BaseException, reason: str) -> None:
    tally = Tally()
    tally.failed(error)
    snapshot = tally.snapshot(queued=0, streams=0)
    assert (snapshot.failures, snapshot.failure_reasons) == (1, {reason: 1})
    assert reason_of(error) in REASONS
