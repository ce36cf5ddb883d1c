"""Which rows run together."""

from hypothesis import given
from hypothesis import strategies as st

from deploy_rnn.serving.scoring.batches import BatchLimits, Item, plan_batches

LIMITS = BatchLimits(rows=4, waste=0.25, row_steps=1000)


def items(*steps: int, keys: str = "") -> list[Item]:
    return [Item(row, keys[row : row + 1], count) for row, count in enumerate(steps)]


def test_rows_that_are_close_in_length_run_together() -> None:
    assert plan_batches(items(3, 100, 4, 90, 3), LIMITS) == [[1, 3], [2, 0, 4]]


def test_a_run_has_at_most_so_many_rows() -> None:
    assert plan_batches(items(5, 5, 5, 5, 5), LIMITS) == [[0, 1, 2, 3], [4]]


def test_without_padding_only_equal_steps_run_together() -> None:
    limits = BatchLimits(rows=4, waste=0.0, row_steps=1000)
    assert plan_batches(items(5, 4, 5, 4), limits) == [[0, 2], [1, 3]]


def test_rows_that_differ_in_their_key_run_apart() -> None:
    assert plan_batches(items(5, 5, 5, keys="aba"), LIMITS) == [[0, 2], [1]]


def test_steps_are_limited_unless_a_row_alone_has_more() -> None:
    limits = BatchLimits(rows=4, waste=0.25, row_steps=20)
    assert plan_batches(items(30, 10, 10, 10), limits) == [[0], [1, 2], [3]]


@given(
    st.lists(st.integers(0, 60), max_size=40),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(1, 200),
)
def test_every_row_runs_once_within_the_limits(
    steps: list[int], rows: int, waste: float, row_steps: int
) -> None:
    batches = plan_batches(items(*steps), BatchLimits(rows, waste, row_steps))
    assert sorted(row for batch in batches for row in batch) == list(range(len(steps)))
    for batch in batches:
        longest = max(steps[row] for row in batch)
        assert len(batch) <= rows
        if len(batch) > 1:
            assert len(batch) * longest <= row_steps
            assert sum(steps[row] for row in batch) >= (1 - waste) * len(batch) * longest - 1e-9
