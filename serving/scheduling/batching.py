"""Which of the waiting requests run together, decided by two pure functions.

`choose_rows` is for requests that stand alone: rows of different length, little padding, and nobody starves.
`choose_segments` is for chunks of streams. They are never padded: a state must not see a step that its stream lacks.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol


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


def choose_rows(items: Sequence[Item], max_rows: int, max_waste: float) -> list[int]:
    """Choose the next batch: indices of `items`, which are in order of arrival.

    1. The oldest is always in it, so that each waits at most as many runs as there were requests before it.
    2. At most `max_rows` rows, unless the oldest alone has more.
    3. At most the share `max_waste` of rows times the longest steps is padding; 0 joins equal steps only.

    There is one candidate for each length that could be the batch's longest. The one with most rows is taken, and of
    equals the one with least padding. A batch is filled from its longest request downwards: each shorter one adds
    padding.
    """
    oldest = items[0]
    joinable = [index for index, item in enumerate(items) if item.key == oldest.key]
    longest_first = sorted(
        joinable, key=lambda index: -items[index].steps
    )  # stable: the earlier of equals first
    best = [0]
    best_worth = (0, 0)
    longest = None
    for position, index in enumerate(longest_first):
        steps = items[index].steps
        # Rule 1: the oldest does not fit into a batch of fewer steps.
        if steps < oldest.steps:
            break
        if steps == longest:
            continue
        longest = steps
        batch = _fill(items, longest_first[position:], max_rows, max_waste)
        worth = _worth([items[index] for index in batch])
        if worth > best_worth:
            best = batch
            best_worth = worth
    return sorted(best)


def _fill(
    items: Sequence[Item], longest_first: Sequence[int], max_rows: int, max_waste: float
) -> list[int]:
    """Add to the oldest request as many of the others as fit; the oldest alone if that leaves too much padding."""
    oldest = items[0]
    longest = items[longest_first[0]].steps
    batch = [0]
    rows = oldest.rows
    real_steps = oldest.rows * oldest.steps
    for index in longest_first:
        item = items[index]
        new_rows = rows + item.rows
        if index == 0 or new_rows > max_rows:
            continue
        new_real_steps = real_steps + item.rows * item.steps
        # A batch with too much padding so far may still be filled up: a row longer than the mean lowers the share.
        lowers_waste = item.steps * rows >= real_steps
        if not lowers_waste and new_real_steps < (1 - max_waste) * new_rows * longest:
            break
        batch.append(index)
        rows = new_rows
        real_steps = new_real_steps
    within_waste = real_steps >= (1 - max_waste) * rows * longest
    return batch if within_waste else [0]


def _worth(batch: Sequence[Item]) -> tuple[int, int]:
    """First the rows, then the steps of padding as a negative number."""
    rows = sum(item.rows for item in batch)
    longest = max(item.steps for item in batch)
    real_steps = sum(item.rows * item.steps for item in batch)
    return rows, real_steps - rows * longest


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
