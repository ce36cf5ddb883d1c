"""`RunTimes`: between the measured runs, and beyond."""

import pytest

from deploy_rnn.serving.engine.run_times import RunTimes

TIMES = RunTimes({8: {1: 1.0, 4: 2.5}, 64: {1: 8.0, 4: 20.0}})


@pytest.mark.parametrize(
    ("rows", "steps", "seconds"),
    [
        (1, 8, 1.0),
        (4, 64, 20.0),
        (2, 8, 1.5),
        (1, 36, 4.5),
        (2, 36, 6.75),
        (1, 2, 1.0),  # a run has a fixed cost
        (1, 120, 15.0),  # the last line goes on
        (7, 8, 4.0),
    ],
)
def test_the_measured_runs_are_joined_by_lines(rows: int, steps: int, seconds: float) -> None:
    assert TIMES.seconds(rows, steps) == pytest.approx(seconds)


def test_one_measured_run_stands_for_all_in_proportion() -> None:
    times = RunTimes({10: {2: 3.0}})
    assert times.seconds(4, 20) == pytest.approx(12.0)
    assert times.seconds(1, 5) == pytest.approx(3.0)


def test_more_rows_never_cost_less() -> None:
    """However a measurement was disturbed."""
    assert RunTimes({10: {1: 3.0, 2: 2.0}}).seconds(9, 10) == 2.0


def test_without_a_measurement_rows_cost_nothing() -> None:
    assert RunTimes({}).seconds(9, 5) == RunTimes({}).seconds(1, 5) == 5.0
