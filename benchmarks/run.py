"""`make bench`: the quick grid on this machine's CPU, a few minutes; JSON, tables and a plot in build/bench.

`--commit` measures the standard grid instead (a quarter of an hour), writes to benchmarks/results, and regenerates the
tables and pictures of the README and docs. `--full` adds every other benchmark and the full grid, which take hours.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import RESULTS, ROOT
from benchmarks.reporting.plots import draw, grid_plot
from benchmarks.reporting.tables import grid_sections
from benchmarks.reporting.text import load

BUILD = ROOT / "build" / "bench"
FILES = ["--files", str(BUILD / "files")]
QUICK = {"grid_cpu": ["grid.measure", *FILES]}
STANDARD = {"grid_cpu": ["grid.measure", "--grid", "standard", *FILES]}
FULL = STANDARD | {
    "export": ["studies.exporters"],
    "compile_time": ["studies.compile_time"],
    "loading": ["studies.loading"],
    "score": ["score"],
    "precision": ["studies.precision"],
    "torch_modules": ["studies.torch_modules", "--hidden", "64", "256"],
    "grid_cpu_full": ["grid.measure", "--grid", "full", *FILES],
    "batching": ["serving.batching"],
}
"""Name of the JSON -> the module of `benchmarks` that measures it, and its arguments."""


def run_module(name: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    subprocess.run(command, cwd=ROOT, check=True)


def show_grid(output: Path) -> None:
    """Write the tables and the plot of a grid to build/bench."""
    result = load(output)
    sections = [f"## {name}\n\n{table}\n" for name, table in grid_sections(result).items()]
    page = BUILD / f"{output.stem}.md"
    page.write_text("\n".join(sections), encoding="utf-8")
    picture = BUILD / f"{output.stem}.svg"
    draw(grid_plot(result), picture)
    print(f"\nTables: {page}\nPlot:   {picture}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="every benchmark and point: hours")
    parser.add_argument(
        "--commit",
        action="store_true",
        help="replace the committed results and the README's tables",
    )
    parser.add_argument(
        "--points", nargs="+", metavar="CELL,H,T,B", help="only these points of the grid"
    )
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.full:
        benchmarks = FULL
    elif options.commit:
        benchmarks = STANDARD
    else:
        benchmarks = QUICK
    folder = RESULTS if options.commit else BUILD
    folder.mkdir(parents=True, exist_ok=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    point_arguments = ["--points", *options.points, "--no-compile"] if options.points else []

    for name, (module, *arguments) in benchmarks.items():
        output = folder / f"{name}.json"
        print(f"\n{name} -> {output}\n", flush=True)
        run_module(module, *arguments, *point_arguments, "--output", str(output))
        if module == "grid.measure":
            show_grid(output)
    if options.full:
        print(f"\nserving -> {folder}/serving_*.json\n", flush=True)
        run_module("serving.serve", "--output", str(folder))
    if options.commit:
        run_module("reporting.tables")
        run_module("reporting.plots")


if __name__ == "__main__":
    main()
