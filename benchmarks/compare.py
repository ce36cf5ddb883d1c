"""What has become faster or slower: `python -m benchmarks.compare OLD.json NEW.json`, two results of one benchmark.

Prints each contestant's time at each point, NEW as a multiple of OLD, and the geometric mean. `--fail-above 1.1` exits
with 1 if a contestant's mean is above that, or if a contestant is missing at a point that both results have.
`--contestant NAME` compares only that one. Exits with 2 if the two results have nothing in common.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.reporting.text import load, machine_line, markdown

Times = dict[str, dict[str, float]]
"""contestant -> point -> milliseconds, or a ratio of two times."""


def read_times(result: dict[str, Any], only: str | None) -> Times:
    """The median of every contestant at every point; of the contestant `only` if that is given."""
    times: Times = {}
    for row in [*result["rows"], *result.get("lengths", ())]:
        point = _point_name(row)
        for name, timing in row.get("contestants", {}).items():
            if only in (None, name):
                times.setdefault(name, {})[point] = timing["median"]
    return times


def _point_name(row: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.items() if isinstance(value, int | str))


def divide(new: Times, old: Times) -> Times:
    """New time / old time, at every point that both have."""
    ratios: Times = {}
    for name, old_times in old.items():
        new_times = new.get(name, {})
        points = {
            point: new_times[point] / ms for point, ms in old_times.items() if point in new_times
        }
        if points:
            ratios[name] = points
    return ratios


def count_missing(old: Times, new: Times) -> Counter[str]:
    """contestant -> at how many points it was measured in `old` only; points that `new` lacks do not count."""
    new_points = set().union(*new.values())
    missing: Counter[str] = Counter()
    for name, old_times in old.items():
        lost_points = (old_times.keys() & new_points) - new.get(name, {}).keys()
        if lost_points:
            missing[name] = len(lost_points)
    return missing


def ratios_table(ratios: Times) -> str:
    points = dict.fromkeys(point for times in ratios.values() for point in times)
    rows = []
    for point in points:
        cells = [f"{times[point]:.2f}" if point in times else "" for times in ratios.values()]
        rows.append([point, *cells])
    means = [f"{geometric_mean(times.values()):.2f}" for times in ratios.values()]
    rows.append(["geometric mean", *means])
    return markdown(["new time / old", *ratios], rows)


def complaints(ratios: Times, missing: Counter[str], limit: float) -> Iterator[str]:
    for name, points in ratios.items():
        mean = geometric_mean(points.values())
        if mean > limit:
            yield f"{name} takes {mean:.2f} times as long as before; the limit is {limit:g}."
    for name, count in missing.items():
        yield f"{name} is missing at {count} points."


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument(
        "--fail-above",
        type=float,
        metavar="RATIO",
        help="exit with 1 if a contestant's mean is above",
    )
    parser.add_argument("--contestant", metavar="NAME", help="compare only this contestant")
    options = parser.parse_args()

    old = load(options.old)
    new = load(options.new)
    old_times = read_times(old, options.contestant)
    new_times = read_times(new, options.contestant)
    ratios = divide(new_times, old_times)
    if not ratios:
        print("The two results have no point and contestant in common.", file=sys.stderr)
        return 2

    print(f"{ratios_table(ratios)}\n\nold: {machine_line(old)}\nnew: {machine_line(new)}")
    if options.fail_above is None:
        return 0
    lines = list(complaints(ratios, count_missing(old_times, new_times), options.fail_above))
    print("\n".join(lines), file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
