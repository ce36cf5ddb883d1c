"""Which rows of a window run together: a pure function."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Item(NamedTuple):
    """A row.

    Attributes:
        row: its index in the window.
        key: only rows of equal key can share a run.
        steps: its length; 0 if the model has no time axis.
    """

    row: int
    key: Hashable
    steps: int


@dataclass(frozen=True)
class BatchLimits:
    """How much a run takes.

    Attributes:
        rows: at most; 1 if rows must not share a run.
        waste: share of the steps that may be padding; 0 if rows must not be padded.
        row_steps: rows times steps, at most, unless few rows alone have more.
        few_rows: which may share a run however many steps they have.
    """

    rows: int
    waste: float
    row_steps: int
    few_rows: int = 1


def plan_batches(items: Sequence[Item], limits: BatchLimits) -> list[list[int]]:
    """Divide rows into runs: indices of the rows of each.

    Rows of equal key are taken from the longest to the shortest, so that those next to each other in length share a
    run. It depends on nothing but its arguments: whoever repeats a window gets the same runs, and the same numbers.
    """
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(item.key, []).append(item)
    batches: list[list[int]] = []
    for group in groups.values():
        group.sort(key=lambda item: (-item.steps, item.row))
        batch: list[Item] = []
        real_steps = 0
        for item in group:
            if batch and not _fits(len(batch), batch[0].steps, real_steps, item.steps, limits):
                batches.append([member.row for member in batch])
                batch = []
                real_steps = 0
            batch.append(item)
            real_steps += item.steps
        batches.append([member.row for member in batch])
    return batches


def _fits(rows: int, longest: int, real_steps: int, steps: int, limits: BatchLimits) -> bool:
    """Whether another row of `steps` steps, which is not longer, may join a run."""
    all_steps = (rows + 1) * longest
    if rows >= limits.rows or (all_steps > limits.row_steps and rows >= limits.few_rows):
        return False
    if limits.waste == 0:
        return steps == longest
    return real_steps + steps >= (1 - limits.waste) * all_steps
