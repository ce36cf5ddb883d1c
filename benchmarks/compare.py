"""What has become faster or slower: `python benchmarks/compare.py OLD.json NEW.json`, two results of one benchmark.

Each contestant's time at each point, NEW as a multiple of OLD, and the geometric mean; `--fail-above 1.1` exits 1 if
a contestant's mean is above. Only `--contestant NAME` counts, if given. Points that one of them lacks are left out.
"""

import argparse
import sys
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from text import load, machine_line, markdown

Times = dict[tuple[str, str], float]


def times(result: dict[str, Any]) -> Times:
    """(point, contestant) -> milliseconds."""
    return {
        (_place(row), name): measured["median"]
        for row in result["rows"]
        for name, measured in row["contestants"].items()
    }


def _place(row: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.items() if isinstance(value, int | str))


def ratios(old: Times, new: Times, only: str | None) -> dict[str, dict[str, float]]:
    """contestant -> point -> how many times as long as before."""
    found: dict[str, dict[str, float]] = {}
    for point, name in old.keys() & new.keys():
        if only in (None, name):
            found.setdefault(name, {})[point] = new[point, name] / old[point, name]
    return {name: dict(sorted(points.items())) for name, points in sorted(found.items())}


def table(found: dict[str, dict[str, float]]) -> str:
    points = sorted({point for each in found.values() for point in each})
    rows = [[point, *(f"{each[point]:.2f}" if point in each else "" for each in found.values())] for point in points]
    means = ["geometric mean", *(f"{geometric_mean(each.values()):.2f}" for each in found.values())]
    return markdown(["new time / old", *found], [*rows, means])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--fail-above", type=float, metavar="RATIO", help="exit 1 if a contestant's mean is above")
    parser.add_argument("--contestant", metavar="NAME", help="this one alone")
    options = parser.parse_args()
    old, new = load(options.old), load(options.new)
    found = ratios(times(old), times(new), options.contestant)
    if not found:
        print("The two results have no point and contestant in common.", file=sys.stderr)
        return 2
    print(f"{table(found)}\n\nold: {machine_line(old)}\nnew: {machine_line(new)}")
    limit = options.fail_above
    means = {name: geometric_mean(points.values()) for name, points in found.items()}
    slower = {name: mean for name, mean in means.items() if limit is not None and mean > limit}
    for name, mean in slower.items():
        print(f"{name} takes {mean:.2f} times as long as before; the limit is {limit:g}.", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
