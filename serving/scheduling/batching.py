"""Which of the waiting requests run together, decided by two pure functions.

`choose_rows` is for requests that stand alone: rows of different length, little padding, and nobody starves.
`choose_segments` is for chunks of streams. They are never padded: a state must not see a step that its stream lacks.
"""

from collections.abc import Hashable, Sequence
from itertools import accumulate
from typing import Protocol


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
    longest_first = [index for index, item in enumerate(items) if item.key == oldest.key]
    longest_first.sort(key=lambda index: items[index].steps, reverse=True)  # stable: the earlier of equals first
    batches: list[list[int]] = []
    previous_steps = None
    for position, index in enumerate(longest_first):
        steps = items[index].steps
        # Rule 1: the oldest would not fit into a shorter batch.
        if steps < oldest.steps:
            break
        if steps != previous_steps:
            batches.append(_fill(items, longest_first[position:], max_rows, max_waste))
        previous_steps = steps

    def worth(batch: list[int]) -> tuple[int, int]:
        return _rows_and_padding([items[index] for index in batch])

    best = max(batches, key=worth)
    return sorted(best)


def _fill(items: Sequence[Item], longest_first: Sequence[int], max_rows: int, max_waste: float) -> list[int]:
    """Add to the oldest request as many of the others as fit; the oldest alone if that leaves too much padding."""
    longest = items[longest_first[0]].steps
    batch = [0]
    rows = items[0].rows
    real_steps = items[0].rows * items[0].steps
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


def _rows_and_padding(batch: Sequence[Item]) -> tuple[int, int]:
    """Count the rows, and the steps of padding as a negative number."""
    longest = max(item.steps for item in batch)
    rows = sum(item.rows for item in batch)
    return rows, sum(item.rows * (item.steps - longest) for item in batch)


def choose_segments(backlogs: Sequence[Sequence[Chunk]], max_rows: int, max_steps: int) -> list[tuple[int, int]]:
    """Choose the next batch: (index of a backlog, how many of its chunks).

    A backlog is the chunks of one stream that wait, in order; the first few can run as one segment, end to end. A run
    takes the same number of steps from each backlog that takes part.

    1. The oldest backlog is always in it: `backlogs` are in the order of their oldest chunk.
    2. At most `max_rows` rows, and `max_steps` steps unless the first chunk alone has more.
    3. The number of steps is one at which a chunk of the oldest backlog ends; of those, the one at which most rows can
       take part, and of equals the larger.
    """
    counts = [_chunks_by_steps(backlog, backlogs[0][0].key, max_steps) for backlog in backlogs]
    fewest_steps_first = [_segments(steps, backlogs, counts, max_rows) for steps in counts[0]]

    def rows(batch: list[tuple[int, int]]) -> int:
        return sum(backlogs[index][0].rows for index, _ in batch)

    # Rule 3: `max` takes the first of equals, which is to be the one of most steps.
    return max(reversed(fewest_steps_first), key=rows)


def _chunks_by_steps(backlog: Sequence[Chunk], key: Hashable, max_steps: int) -> dict[int, int]:
    """Map the steps at which a segment of the backlog can end to the number of its chunks."""
    counts: dict[int, int] = {}
    ends = accumulate(chunk.steps for chunk in backlog)
    for index, (chunk, end) in enumerate(zip(backlog, ends, strict=True)):
        if chunk.key != key:
            break
        follows = index > 0
        if follows and (end > max_steps or not backlog[index - 1].joins):
            break
        counts[end] = index + 1
    return counts


def _segments(
    steps: int, backlogs: Sequence[Sequence[Chunk]], counts: Sequence[dict[int, int]], max_rows: int
) -> list[tuple[int, int]]:
    """The segments of this many steps: the oldest, then as many others as fit, in order of age."""
    batch = [(0, counts[0][steps])]
    rows = backlogs[0][0].rows
    for index in range(1, len(backlogs)):
        new_rows = rows + backlogs[index][0].rows
        if steps in counts[index] and new_rows <= max_rows:
            batch.append((index, counts[index][steps]))
            rows = new_rows
    return batch
