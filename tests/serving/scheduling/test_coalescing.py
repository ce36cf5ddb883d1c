"""`coalescing.choose_segments`: chunks of streams share runs of equal steps."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_rnn.serving.scheduling.coalescing import choose_segments


@dataclass(frozen=True)
class Waits:
    steps: int
    rows: int = 1
    joins: bool = True
    key: Any = None


def lanes(*steps: list[int]) -> list[list[Waits]]:
    return [[Waits(each) for each in lane] for lane in steps]


chunks = st.builds(Waits, st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 1))


@given(
    st.lists(st.lists(chunks, min_size=1, max_size=8), min_size=1, max_size=10), st.integers(0, 8), st.integers(0, 20)
)
def test_every_rule_holds(queue: list[list[Waits]], max_rows: int, max_steps: int) -> None:
    queue = [[Waits(chunk.steps, lane[0].rows, chunk.joins, chunk.key) for chunk in lane] for lane in queue]
    run = choose_segments(queue, max_rows, max_steps)
    assert run[0][0] == 0
    assert len({lane for lane, _ in run}) == len(run)
    taken = [queue[lane][:count] for lane, count in run]
    assert all(lane for lane in taken)
    (steps,) = {sum(chunk.steps for chunk in lane) for lane in taken}
    assert steps <= max_steps or all(len(lane) == 1 for lane in taken)
    assert sum(lane[0].rows for lane in taken) <= max_rows or len(run) == 1
    assert {chunk.key for lane in taken for chunk in lane} == {queue[0][0].key}
    assert all(chunk.joins for lane in taken for chunk in lane[:-1])


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        ([[10], [10], [7]], [(0, 1), (1, 1)]),
        ([[10, 10], [10, 10]], [(0, 2), (1, 2)]),  # a backlog in one go
        ([[10, 10, 10], [10], [10]], [(0, 1), (1, 1), (2, 1)]),  # more rows before more steps
        ([[10, 10], [5, 5], [20]], [(0, 2), (2, 1)]),
        ([[4], [1, 1, 1, 1, 1]], [(0, 1), (1, 4)]),
        ([[3, 3, 3]], [(0, 3)]),
        ([[30, 30, 30, 30]], [(0, 3)]),  # no more than max_steps
        ([[200, 30]], [(0, 1)]),
    ],
)
def test_streams_share_a_run_where_chunks_end(queue: list[list[int]], expected: list[tuple[int, int]]) -> None:
    assert choose_segments(lanes(*queue), 8, 100) == expected
