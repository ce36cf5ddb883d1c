"""`RunTimes`: how long a run takes, by its rows and steps."""

from collections.abc import Mapping

import numpy as np


class RunTimes:
    """Seconds of a run, from those that were measured: along straight lines, of which the last goes on.

    Args:
        measured: steps -> rows -> seconds; empty if nothing was measured: then a run takes as long as its steps are
            many, whatever its rows.
    """

    def __init__(self, measured: Mapping[int, Mapping[int, float]]) -> None:
        self._measured = {
            steps: dict(sorted(by_rows.items())) for steps, by_rows in sorted(measured.items())
        }

    def seconds(self, rows: int, steps: int) -> float:
        """Return the seconds of a run of `rows` rows of `steps` steps."""
        if not self._measured:
            return float(steps)
        measured_steps = list(self._measured)
        values = [_between(by_rows, rows) for by_rows in self._measured.values()]
        return _between(dict(zip(measured_steps, values, strict=True)), steps)


def _between(points: Mapping[int, float], place: int) -> float:
    """Return the value at `place` of the lines through the points, which are in rising order."""
    places = list(points)
    values = list(points.values())
    last = places[-1]
    if place <= last:
        # Before the first point it is that of the first: a run has a fixed cost, too.
        return float(np.interp(place, places, values))
    if len(places) == 1:
        return values[-1] * place / last
    slope = (values[-1] - values[-2]) / (last - places[-2])
    return values[-1] + max(slope, 0.0) * (place - last)
