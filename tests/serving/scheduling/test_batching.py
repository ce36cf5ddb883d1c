"""`choose_rows` and `choose_segments`: their rules hold for any queue."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_rnn.serving.engine.run_times import RunTimes
from deploy_rnn.serving.scheduling.batching import choose_rows, choose_segments


@dataclass(frozen=True)
class Waiting:
    rows: int
    steps: int
    key: Any = None
    joins: bool = True


def requests(*steps: int) -> list[Waiting]:
    return [Waiting(1, count) for count in steps]


def few_runs(rows: int, steps: int) -> float:
    """Rows cost nothing: the more share a run, the better."""
    return float(steps)


queues = st.lists(
    st.builds(Waiting, st.integers(1, 5), st.integers(1, 60), st.integers(0, 1)),
    min_size=1,
    max_size=40,
)
wastes = st.sampled_from([0.0, 0.1, 0.15, 0.5, 0.9])


@given(queues, st.integers(0, 12), wastes)
def test_every_rule_of_rows_holds(queue: list[Waiting], max_rows: int, max_waste: float) -> None:
    batch = choose_rows(queue, max_rows, max_waste, few_runs)
    chosen = [queue[index] for index in batch]
    assert batch == sorted(set(batch))
    assert batch[0] == 0, "the oldest waits"
    assert {item.key for item in chosen} == {queue[0].key}
    rows = sum(item.rows for item in chosen)
    longest = max(item.steps for item in chosen)
    assert rows <= max_rows or len(batch) == 1
    assert sum(item.rows * item.steps for item in chosen) >= (1 - max_waste) * rows * longest


@given(queues, st.integers(1, 12), wastes)
def test_nobody_starves(queue: list[Waiting], max_rows: int, max_waste: float) -> None:
    """However many come later, a request is in one of the first n + 1 batches if n were before it."""
    last = queue[-1]
    remaining = list(queue)
    batches = 0
    while any(item is last for item in remaining):
        remaining += requests(30, 30, 30)
        batch = choose_rows(remaining, max_rows, max_waste, few_runs)
        remaining = [item for index, item in enumerate(remaining) if index not in batch]
        batches += 1
    assert batches <= len(queue)


@pytest.mark.parametrize(
    ("steps", "max_rows", "max_waste", "expected"),
    [
        ([10, 10, 10], 8, 0.15, [0, 1, 2]),
        ([10, 9, 100, 10], 8, 0.15, [0, 1, 3]),  # the long one would be mostly padding
        ([100, 9, 99, 98], 8, 0.15, [0, 2, 3]),
        ([10, 10, 10], 2, 0.15, [0, 1]),
        ([10, 11, 10], 8, 0.0, [0, 2]),
        ([10, 20, 20, 20, 20], 8, 0.15, [0]),  # 10 of 40 is too much
        ([10, 5, 8], 8, 0.2, [0, 2]),  # the nearest comes first
        ([60, 1, 1, 1], 8, 0.5, [0]),  # it would hardly pay
    ],
)
def test_rows_of_like_length_run_together(
    steps: list[int], max_rows: int, max_waste: float, expected: list[int]
) -> None:
    assert choose_rows(requests(*steps), max_rows, max_waste, few_runs) == expected


@pytest.mark.parametrize(
    ("seconds_of_rows", "expected"),
    [
        ({1: 1.8, 16: 28.0}, 1),  # each row costs nearly as much as alone
        ({1: 1.8, 16: 25.6}, 3),  # a tenth less: three have most of it
        ({1: 1.7, 2: 2.0, 4: 2.96, 8: 5.44, 16: 9.28}, 13),  # sixteen are hardly better
        ({1: 1.0, 16: 1.0}, 16),  # rows cost nothing
        ({1: 0.0001, 16: 0.0016}, 13),  # but each run does, besides its graph
    ],
)
def test_as_many_rows_share_a_run_as_pays(seconds_of_rows: dict[int, float], expected: int) -> None:
    times = RunTimes({10: seconds_of_rows})
    batch = choose_rows(requests(*[10] * 16), 32, 0.15, times.seconds)
    assert batch == list(range(expected))


def test_a_request_of_more_rows_than_a_run_has_goes_alone() -> None:
    assert choose_rows([Waiting(9, 5), Waiting(1, 5)], 8, 0.15, few_runs) == [0]
    assert choose_rows([Waiting(1, 5), Waiting(9, 5), Waiting(2, 5)], 8, 0.15, few_runs) == [0, 2]


chunks = st.tuples(st.integers(1, 6), st.integers(0, 1), st.booleans())
streams = st.tuples(st.integers(1, 3), st.lists(chunks, min_size=1, max_size=8))


@given(st.lists(streams, min_size=1, max_size=10), st.integers(0, 8), st.integers(0, 20))
def test_every_rule_of_segments_holds(
    streams: list[tuple[int, list[tuple[int, int, bool]]]], max_rows: int, max_steps: int
) -> None:
    backlogs = [[Waiting(rows, *chunk) for chunk in backlog] for rows, backlog in streams]
    batch = choose_segments(backlogs, max_rows, max_steps)
    assert batch[0][0] == 0, "the oldest waits"
    assert len({index for index, _ in batch}) == len(batch)
    segments = [backlogs[index][:count] for index, count in batch]
    assert all(segments)
    (steps,) = {sum(chunk.steps for chunk in segment) for segment in segments}
    assert steps <= max_steps or all(len(segment) == 1 for segment in segments)
    assert sum(segment[0].rows for segment in segments) <= max_rows or len(batch) == 1
    assert {chunk.key for segment in segments for chunk in segment} == {backlogs[0][0].key}
    assert all(chunk.joins for segment in segments for chunk in segment[:-1])


@pytest.mark.parametrize(
    ("steps", "expected"),
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
def test_streams_share_a_run_where_chunks_end(
    steps: list[list[int]], expected: list[tuple[int, int]]
) -> None:
    backlogs = [requests(*chunk_steps) for chunk_steps in steps]
    assert choose_segments(backlogs, max_rows=8, max_steps=100) == expected
