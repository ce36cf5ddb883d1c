"""Which of the waiting requests run together: rows of different length, little padding, and nobody starves."""

from collections.abc import Hashable, Sequence
from typing import Protocol


class Item(Protocol):
    """A request that waits.

    Attributes:
        rows, steps: of its inputs.
        key: only requests of equal key can share a run.
    """

    @property
    def rows(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def key(self) -> Hashable: ...


def choose_rows(items: Sequence[Item], max_rows: int, max_waste: float) -> list[int]:
    """The next run: indices of `items`, which are in order of arrival.

    1. The oldest is always in it, so that each waits at most as many runs as there were requests before it.
    2. At most `max_rows` rows, unless the oldest alone has more.
    3. At most the share `max_waste` of rows times the longest steps is padding; 0 joins equal steps only.

    Of the runs that these rules allow, one for each length that could be its longest, the one with most rows is taken,
    and of equals the one with least padding. A run is filled from its longest request downwards: each shorter one adds
    padding.
    """
    fitting = [index for index, item in enumerate(items) if item.key == items[0].key]
    by_steps = sorted(fitting, key=lambda index: -items[index].steps)  # stable: the earlier of equals first
    runs: list[list[int]] = []
    for place, index in enumerate(by_steps):
        longest = items[index].steps
        if longest < items[0].steps:
            break
        if place == 0 or longest != items[by_steps[place - 1]].steps:
            runs.append(_filled(items, by_steps[place:], longest, max_rows, max_waste))
    best = max(runs, key=lambda run: _worth([items[index] for index in run]))
    return sorted(best)


def _filled(
    items: Sequence[Item], candidates: Sequence[int], longest: int, max_rows: int, max_waste: float
) -> list[int]:
    """The oldest, and of `candidates`, longest first, as many as fit; the oldest alone if too few would."""
    run, rows, real = [0], items[0].rows, items[0].rows * items[0].steps
    for index in candidates:
        more, steps = items[index].rows, items[index].steps
        if index == 0 or rows + more > max_rows:
            continue
        helps = steps * rows >= real  # longer than the mean so far: the share of padding falls
        if not helps and real + more * steps < (1 - max_waste) * (rows + more) * longest:
            break
        run.append(index)
        rows, real = rows + more, real + more * steps
    return run if real >= (1 - max_waste) * rows * longest else [0]


def _worth(run: Sequence[Item]) -> tuple[int, int]:
    """Rows, and the steps of padding as a negative number."""
    longest = max(item.steps for item in run)
    return sum(item.rows for item in run), sum(item.rows * (item.steps - longest) for item in run)
