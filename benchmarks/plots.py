"""The README's pictures, made from the JSON in benchmarks/results: `python benchmarks/plots.py` draws them again."""

from pathlib import Path
from statistics import geometric_mean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

from tables import RESULTS, ROOT, speeds
from text import load, machine_line

DOCS = ROOT / "docs"
STYLES = {1: "-", 32: "--"}


def modules_plot(result: dict[str, Any]) -> Figure:
    """Speed against torch.nn over H, the mean over T: a panel for each family, a line for each contestant and batch."""
    families = list(dict.fromkeys(row["family"] for row in result["rows"]))
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for panel, family in zip(panels, families, strict=True):
        _family(panel, [row for row in result["rows"] if row["family"] == family])
        panel.set_title(family)
    panels[0].set_ylabel("speed, torch.nn eager = 1")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(machine_line(result), fontsize=7, color="gray")
    return figure


def _family(panel: Axes, rows: list[dict[str, Any]]) -> None:
    names = [name for name in rows[0]["contestants"] if name != "torch.nn"]
    sizes = list(dict.fromkeys(row["H"] for row in rows))
    for color, name in enumerate(names):
        for batch, style in STYLES.items():
            means = [
                geometric_mean(speeds([r["contestants"] for r in rows if (r["H"], r["B"]) == (size, batch)], name))
                for size in sizes
            ]
            panel.plot(sizes, means, style, marker="o", ms=4, color=f"C{color}", label=f"{name}, B={batch}")
    panel.axhline(1, color="black", lw=0.8)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xticks(sizes, [f"H={size}" for size in sizes])
    panel.set_yticks([0.25, 0.5, 1, 2, 4])
    panel.yaxis.set_major_formatter(FormatStrFormatter("%gx"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3)


def draw(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "deploy-rnn"}):  # the same picture, the same file
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    draw(modules_plot(load(RESULTS / "torch_modules.json")), DOCS / "torch_modules.svg")


if __name__ == "__main__":
    main()
