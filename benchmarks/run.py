"""`make bench`: the quick grid on this machine's CPU, a few minutes; JSON, tables and a plot in build/bench.

`--commit` takes the standard grid instead (a quarter of an hour), writes to benchmarks/results, and makes the tables
and pictures of the README and docs anew. `--full` adds every other benchmark and the full grid, which take hours.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from plots import draw, grid_plot
from tables import RESULTS, ROOT, grid_sections
from text import load

HERE = Path(__file__).parent
BUILD = ROOT / "build" / "bench"
FILES = ["--files", str(BUILD / "files")]
QUICK = {"grid_cpu": ["grid.py", *FILES]}
STANDARD = {"grid_cpu": ["grid.py", "--grid", "standard", *FILES]}
FULL = STANDARD | {
    "export": ["exporters.py"],
    "compile_time": ["compile_time.py"],
    "torch_modules": ["torch_modules.py", "--hidden", "64", "256"],
    "grid_cpu_full": ["grid.py", "--grid", "full", *FILES],
    "batching": ["batching.py"],
    "serving": ["serve.py"],
}


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
    for name, (script, *arguments) in parts.items():
        output = folder / f"{name}.json"
        print(f"\n{name} -> {output}\n", flush=True)
        subprocess.run([sys.executable, HERE / script, *arguments, *only, "--output", output], check=True)
        if script == "grid.py":
            show(output)
    if options.commit:
        for page in ("tables.py", "plots.py"):
            subprocess.run([sys.executable, HERE / page], check=True)


if __name__ == "__main__":
    main()
