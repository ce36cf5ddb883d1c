"""Which of the waiting requests run together, decided by two pure functions.

`choose_rows` is for requests that stand alone: rows of different length, little padding, and nobody starves.
`choose_segments` is for chunks of streams. They are never padded: a state must not see a step that its stream lacks.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

NEARLY_AS_GOOD = 1.05
"""A batch may take so many times the least time for each step, if it has fewer rows."""

SECONDS_BESIDES = 3e-4
"""What a run costs besides its graph, whatever its rows: a thread awakes, takes requests, and hands over answers."""


class Item(Protocol):
    """A request that waits.

    Attributes:
        rows, steps: the sizes of its inputs.
        key: only requests of equal key can share a run.
    """

    @property
    def rows(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def key(self) -> Hashable: ...


class Chunk(Item, Protocol):
    """A chunk of a stream that waits.

    Attributes:
        joins: whether another chunk may follow it in the same run: its answer does not need the state in between.
    """

    @property
    def joins(self) -> bool: ...


class Segment(NamedTuple):
    """The first chunks of a stream's backlog, which run as one.

    Attributes:
        backlog: index of the backlog.
        chunks: how many of its chunks.
    """

    backlog: int
    chunks: int


def choose_rows(
    items: Sequence[Item],
    max_rows: int,
    max_waste: float,
    run_seconds: Callable[[int, int], float],
) -> list[int]:
    """Choose the next batch: indices of `items`, which are in order of arrival.

    1. The oldest is always in it, so that each waits at most as many runs as there were requests before it.
    2. At most `max_rows` rows, unless the oldest alone has more.
    3. At most the share `max_waste` of rows times the longest steps is padding; 0 joins equal steps only.
    4. Only as many as pays. Those nearest to the oldest in length join it, one after another; of these batches, the one
       whose run takes least for each step of the requests would answer most in a given time. A smaller one is taken if
       it is nearly as good, since all of them wait for the whole run.

    Args:
        run_seconds: rows, steps -> what a run of them takes.
    """
    if len(items) == 1:
        return [0]
    oldest = items[0]
    key = oldest.key
    longest = oldest.steps
    batch = [0]
    rows = oldest.rows
    real_steps = rows * longest
    # Seconds a step, of the first items of the batch.
    costs = [(run_seconds(rows, longest) + SECONDS_BESIDES) / real_steps]
    # How far each is from the oldest in length, and its index: the earlier of equals first.
    nearest = [
        (abs(item.steps - longest), index)
        for index, item in enumerate(items)
        if index and item.key == key
    ]
    nearest.sort()
    for _, index in nearest:
        if rows >= max_rows:
            break
        item = items[index]
        new_rows = rows + item.rows
        new_longest = max(longest, item.steps)
        new_real_steps = real_steps + item.rows * item.steps
        too_much_padding = new_real_steps < (1 - max_waste) * new_rows * new_longest
        if new_rows > max_rows or too_much_padding:
            continue
        batch.append(index)
        rows, longest, real_steps = new_rows, new_longest, new_real_steps
        costs.append((run_seconds(rows, longest) + SECONDS_BESIDES) / real_steps)
    good_enough = NEARLY_AS_GOOD * min(costs)
    count = next(count for count, cost in enumerate(costs, 1) if cost <= good_enough)
    return sorted(batch[:count])


def choose_segments(
    backlogs: Sequence[Sequence[Chunk]], max_rows: int, max_steps: int
) -> list[Segment]:
    """Choose the next batch.

    A backlog is the chunks of one stream that wait, in order; the first few can run as one segment, end to end. A run
    takes the same number of steps from each backlog that takes part.

    1. The oldest backlog is always in it: `backlogs` are in the order of their oldest chunk.
    2. At most `max_rows` rows, and `max_steps` steps unless the first chunk alone has more.
    3. The number of steps is one at which a chunk of the oldest backlog ends; of those, the one at which most rows can
       take part, and of equals the larger.
    """
    key = backlogs[0][0].key
    chunk_counts = [_chunks_by_steps(backlog, key, max_steps) for backlog in backlogs]
    best: list[Segment] = []
    most_rows = 0
    # Rule 3: from most steps to fewest, so that of equals the larger stays.
    for steps in reversed(chunk_counts[0]):
        batch: list[Segment] = []
        rows = 0
        for index, backlog in enumerate(backlogs):
            new_rows = rows + backlog[0].rows
            fits = new_rows <= max_rows or index == 0
            if fits and steps in chunk_counts[index]:
                batch.append(Segment(index, chunk_counts[index][steps]))
                rows = new_rows
        if rows > most_rows:
            best = batch
            most_rows = rows
    return best


def _chunks_by_steps(backlog: Sequence[Chunk], key: Hashable, max_steps: int) -> dict[int, int]:
    """Map the steps at which a segment of the backlog can end to the number of its chunks, fewest first."""
    counts: dict[int, int] = {}
    steps = 0
    joins = True
    for count, chunk in enumerate(backlog, 1):
        steps += chunk.steps
        # Rule 2: the first chunk may have more steps, for it cannot be cut.
        too_long = steps > max_steps and count > 1
        if chunk.key != key or too_long or not joins:
            break
        counts[steps] = count
        joins = chunk.joins
    return counts
