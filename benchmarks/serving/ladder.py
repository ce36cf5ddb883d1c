"""Up the rates: at which of them a server keeps up, and how far it gets."""

import math
from collections.abc import Callable, Sequence
from typing import Any

Point = dict[str, Any]
"""What the load reports at one rate (load.py), and `rate`."""

RATES = (200.0, 400.0, 550.0, 700.0, 900.0, 1200.0)
"""Requests a second."""
HIGHEST_RATE = 3000.0
"""Above this, the load would take much of the two cores that it shares with the servers."""
KEPT_UP_MS = 250.0
"""The p99 up to which a server keeps up: with more requests than it can answer, the last ones wait ever longer."""
STEP = 1.25
"""Between the rates above RATES."""
PRECISION = 1.08
"""Between the capacity and the lowest rate that was too much."""


def kept_up(point: Point) -> bool:
    """Every request was answered, rightly, and 99 of 100 within KEPT_UP_MS."""
    all_right = point["right"] == point["sent"] > 0 and not point["overrun"]
    return all_right and bool(point["p99"] <= KEPT_UP_MS)


def climb(
    measure: Callable[[float], Point], rates: Sequence[float], *, search: bool
) -> dict[str, Any]:
    """Measure at each rate until one is too much; a rate that seems so is tried once more.

    Args:
        search: also find the capacity: above the last of `rates`, and between the last two rates.

    Returns:
        `points` at `rates`, `search` at the rates between, and `capacity`, the highest rate that was kept up.
    """
    points: list[Point] = []
    between: list[Point] = []
    for rate in rates:
        points.append(_measure_twice(measure, rate))
        if not kept_up(points[-1]):
            break
    if search:
        while kept_up((between or points)[-1]):
            rate = STEP * (between or points)[-1]["rate"]
            if rate > HIGHEST_RATE:
                break
            between.append(_measure_twice(measure, rate))
        between += _halve(measure, [*points, *between])
    capacity = max((point["rate"] for point in [*points, *between] if kept_up(point)), default=0.0)
    return {"points": points, "search": between, "capacity": capacity}


def _measure_twice(measure: Callable[[float], Point], rate: float) -> Point:
    """A machine stalls at times; what a server cannot do it fails to do twice."""
    point = measure(rate)
    return point if kept_up(point) else measure(rate)


def _halve(measure: Callable[[float], Point], points: Sequence[Point]) -> list[Point]:
    """Measure between the highest rate that was kept up and the lowest that was not, until they are close."""
    too_high = [point["rate"] for point in points if not kept_up(point)]
    kept = [point["rate"] for point in points if kept_up(point)]
    if not kept or not too_high:
        return []
    low = max(kept)
    high = min(too_high)
    between = []
    while high > PRECISION * low:
        point = measure(round(math.sqrt(low * high)))
        between.append(point)
        if kept_up(point):
            low = point["rate"]
        else:
            high = point["rate"]
    return between
