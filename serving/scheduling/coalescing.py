"""Which chunks of which streams run together, without padding: a state must not see a step that is not its stream's.

A lane is the chunks of one stream that wait, in order; several of them can run as one, end to end. A run takes the same
number of steps from each lane.
"""

from collections.abc import Hashable, Sequence
from itertools import accumulate
from typing import Protocol

from .batching import Item


class Chunk(Item, Protocol):
    """A chunk that waits.

    Attributes:
        joins: whether another chunk may follow it in the same run: its answer does not need the state in between.
    """

    @property
    def joins(self) -> bool: ...


def choose_segments(lanes: Sequence[Sequence[Chunk]], max_rows: int, max_steps: int) -> list[tuple[int, int]]:
    """The next run: (index of a lane, how many of its chunks); lanes are in the order of their oldest chunk.

    1. The oldest lane is always in it.
    2. At most `max_rows` rows, and `max_steps` steps unless the first chunk alone has more.
    3. The number of steps is one at which chunks of the oldest lane end; of those, the one at which most rows can take
       part, and of equals the larger.
    """
    ends = [_ends(lane, lanes[0][0].key, max_steps) for lane in lanes]
    runs = [_at(steps, ends, lanes, max_rows) for steps in ends[0]]
    return max(reversed(runs), key=lambda run: sum(lanes[lane][0].rows for lane, _ in run))


def _ends(lane: Sequence[Chunk], key: Hashable, max_steps: int) -> dict[int, int]:
    """Steps at which a chunk of the lane ends -> how many chunks these are."""
    found: dict[int, int] = {}
    for count, steps in enumerate(accumulate(chunk.steps for chunk in lane), 1):
        if lane[count - 1].key != key or (count > 1 and (steps > max_steps or not lane[count - 2].joins)):
            break
        found[steps] = count
    return found


def _at(
    steps: int, ends: Sequence[dict[int, int]], lanes: Sequence[Sequence[Chunk]], max_rows: int
) -> list[tuple[int, int]]:
    """The lanes that can take part with so many steps, oldest first, as many as fit."""
    run, rows = [(0, ends[0][steps])], lanes[0][0].rows
    for lane in range(1, len(lanes)):
        if steps in ends[lane] and rows + lanes[lane][0].rows <= max_rows:
            run.append((lane, ends[lane][steps]))
            rows += lanes[lane][0].rows
    return run
