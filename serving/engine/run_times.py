"""`RunTimes`: how long a run takes, by its rows and steps."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence


class RunTimes:
    """Seconds of a run, from those that were measured: along straight lines, of which the last goes on.

    Args:
        measured: steps -> rows -> seconds; empty if nothing was measured: then a run takes as long as its steps are
            many, whatever its rows.
    """

    def __init__(self, measured: Mapping[int, Mapping[int, float]]) -> None:
        self._steps = sorted(measured)
        # For each of these: the numbers of rows, and their seconds.
        self._by_rows: list[tuple[list[int], list[float]]] = []
        for steps in self._steps:
            by_rows = measured[steps]
            counts = sorted(by_rows)
            self._by_rows.append((counts, [by_rows[count] for count in counts]))

    def seconds(self, rows: int, steps: int) -> float:
        """Return the seconds of a run of `rows` rows of `steps` steps."""
        if not self._steps:
            return float(steps)
        values = [_between(counts, seconds, rows) for counts, seconds in self._by_rows]
        return _between(self._steps, values, steps)


def _between(places: Sequence[int], values: Sequence[float], place: int) -> float:
    """Return the value at `place` of the lines through the points, which are in rising order."""
    if place <= places[0]:
        return values[0]  # a run has a fixed cost, too
    last = places[-1]
    if place <= last:
        index = bisect_left(places, place)
        share = (place - places[index - 1]) / (places[index] - places[index - 1])
        return values[index - 1] + share * (values[index] - values[index - 1])
    if len(places) == 1:
        return values[-1] * place / last
    slope = (values[-1] - values[-2]) / (last - places[-2])
    return values[-1] + max(slope, 0.0) * (place - last)
