"""What has become faster or slower: `python -m benchmarks.compare OLD.json NEW.json`, two results of one benchmark.

Each contestant's time at each point, NEW as a multiple of OLD, and the geometric mean. `--fail-above 1.1` exits 1 if a
contestant's mean is above, or if one is gone from a point that both have; `--contestant NAME` looks at that one alone.
Exit code 2 if the two have nothing in common.
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
"""contestant -> point -> milliseconds."""


def times(result: dict[str, Any], only: str | None) -> Times:
    found: Times = {}
    for row in [*result["rows"], *result.get("lengths", ())]:
        for name, measured in row.get("contestants", {}).items():
            if only in (None, name):
                found.setdefault(name, {})[_place(row)] = measured["median"]
    return found


def _place(row: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.items() if isinstance(value, int | str))


def ratios(old: Times, new: Times) -> Times:
    """contestant -> point -> how many times as long as before."""
    both = {name: (old[name], new[name]) for name in old if name in new}
    found = {
        name: {point: after[point] / ms for point, ms in before.items() if point in after}
        for name, (before, after) in both.items()
    }
    return {name: points for name, points in found.items() if points}


def gone(old: Times, new: Times) -> Counter[str]:
    """contestant -> at how many of the points of both it is no longer there."""
    points = {point for each in new.values() for point in each}
    return Counter(name for name, each in old.items() for point in each if point in points - new.get(name, {}).keys())


def table(found: Times) -> str:
    points = dict.fromkeys(point for each in found.values() for point in each)
    rows = [[point, *(f"{each[point]:.2f}" if point in each else "" for each in found.values())] for point in points]
    means = ["geometric mean", *(f"{geometric_mean(each.values()):.2f}" for each in found.values())]
    return markdown(["new time / old", *found], [*rows, means])


def complaints(found: Times, lost: Counter[str], limit: float) -> Iterator[str]:
    for name, points in found.items():
        if (mean := geometric_mean(points.values())) > limit:
            yield f"{name} takes {mean:.2f} times as long as before; the limit is {limit:g}."
    for name, count in lost.items():
        yield f"{name} is gone from {count} points."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--fail-above", type=float, metavar="RATIO", help="exit 1 if a contestant's mean is above")
    parser.add_argument("--contestant", metavar="NAME", help="this one alone")
    options = parser.parse_args()
    old, new = load(options.old), load(options.new)
    before, after = times(old, options.contestant), times(new, options.contestant)
    found = ratios(before, after)
    if not found:
        print("The two results have no point and contestant in common.", file=sys.stderr)
        return 2
    print(f"{table(found)}\n\nold: {machine_line(old)}\nnew: {machine_line(new)}")
    if options.fail_above is None:
        return 0
    said = list(complaints(found, gone(before, after), options.fail_above))
    print("\n".join(said), file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
