"""`batching.choose_rows`: its rules hold for any queue."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_rnn.serving.scheduling.batching import choose_rows


@dataclass(frozen=True)
class Waits:
    rows: int
    steps: int
    key: Any = None


def of(*steps: int) -> list[Waits]:
    return [Waits(1, each) for each in steps]


queues = st.lists(st.builds(Waits, st.integers(1, 5), st.integers(1, 60), st.integers(0, 1)), min_size=1, max_size=40)
wastes = st.sampled_from([0.0, 0.1, 0.15, 0.5, 0.9])


@given(queues, st.integers(0, 12), wastes)
def test_every_rule_holds(queue: list[Waits], max_rows: int, max_waste: float) -> None:
    run = choose_rows(queue, max_rows, max_waste)
    chosen = [queue[index] for index in run]
    assert run == sorted(set(run))
    assert run[0] == 0, "the oldest waits"
    assert {item.key for item in chosen} == {queue[0].key}
    rows, longest = sum(item.rows for item in chosen), max(item.steps for item in chosen)
    assert rows <= max_rows or len(run) == 1
    assert sum(item.rows * item.steps for item in chosen) >= (1 - max_waste) * rows * longest


@given(queues, st.integers(1, 12), wastes)
def test_nobody_starves(queue: list[Waits], max_rows: int, max_waste: float) -> None:
    """However many come later, a request is in one of the first n + 1 runs if n were before it."""
    last, left, runs = queue[-1], list(queue), 0
    while any(item is last for item in left):
        left += of(30, 30, 30)
        run = choose_rows(left, max_rows, max_waste)
        left = [item for index, item in enumerate(left) if index not in run]
        runs += 1
    assert runs <= len(queue)


@pytest.mark.parametrize(
    ("steps", "max_rows", "max_waste", "expected"),
    [
        ([10, 10, 10], 8, 0.15, [0, 1, 2]),
        ([10, 9, 100, 10], 8, 0.15, [0, 1, 3]),  # the long one would be mostly padding
        ([100, 9, 99, 98], 8, 0.15, [0, 2, 3]),
        ([10, 10, 10], 2, 0.15, [0, 1]),
        ([10, 11, 10], 8, 0.0, [0, 2]),
        ([10, 20, 20, 20, 20], 8, 0.15, [0, 1, 2, 3, 4]),  # one short among many long
        ([10, 20, 20], 8, 0.15, [0]),  # 10 of 60 is too much
        ([10, 1, 1, 1], 8, 0.5, [0, 1]),
    ],
)
def test_rows_of_like_length_run_together(
    steps: list[int], max_rows: int, max_waste: float, expected: list[int]
) -> None:
    assert choose_rows(of(*steps), max_rows, max_waste) == expected


def test_a_request_of_more_rows_than_a_run_has_goes_alone() -> None:
    assert choose_rows([Waits(9, 5), Waits(1, 5)], 8, 0.15) == [0]
    assert choose_rows([Waits(1, 5), Waits(9, 5), Waits(2, 5)], 8, 0.15) == [0, 2]
