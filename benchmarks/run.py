"""`make bench`: the quick grid on this machine's CPU, a few minutes; JSON, tables and a plot in build/bench.

`--commit` takes the standard grid instead (a quarter of an hour), writes to benchmarks/results, and makes the tables
and pictures of the README and docs anew. `--full` adds every other benchmark and the full grid, which take hours.
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
    "torch_modules": ["studies.torch_modules", "--hidden", "64", "256"],
    "grid_cpu_full": ["grid.measure", "--grid", "full", *FILES],
    "batching": ["serving.batching"],
    "serving": ["serving.serve"],
}


def run_module(name: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], cwd=ROOT, check=True)


def show(output: Path) -> None:
    """The tables and the plot of a grid, in build/bench."""
    result = load(output)
    sections = [f"## {name}\n\n{table}\n" for name, table in grid_sections(result).items()]
    page, picture = BUILD / f"{output.stem}.md", BUILD / f"{output.stem}.svg"
    page.write_text("\n".join(sections), encoding="utf-8")
    draw(grid_plot(result), picture)
    print(f"\nTables: {page}\nPlot:   {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every benchmark and point: hours")
    parser.add_argument("--commit", action="store_true", help="replace the committed results and the README's tables")
    parser.add_argument("--points", nargs="+", metavar="CELL,H,T,B", help="only these points of the grid")
    options = parser.parse_args()
    folder = RESULTS if options.commit else BUILD
    for each in (folder, BUILD):
        each.mkdir(parents=True, exist_ok=True)
    only = ["--points", *options.points, "--no-compile"] if options.points else []
    parts = FULL if options.full else STANDARD if options.commit else QUICK
    for name, (module, *arguments) in parts.items():
        output = folder / f"{name}.json"
        print(f"\n{name} -> {output}\n", flush=True)
        run_module(module, *arguments, *only, "--output", str(output))
        if module == "grid.measure":
            show(output)
    if options.commit:
        for module in ("reporting.tables", "reporting.plots"):
            run_module(module)


if __name__ == "__main__":
    main()
