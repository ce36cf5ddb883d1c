"""The pictures of the README and docs: `python -m benchmarks.reporting.plots`.

They are drawn from the JSON in benchmarks/results.
"""

from pathlib import Path
from statistics import geometric_mean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

from benchmarks import RESULTS, ROOT
from benchmarks.reporting.summary import PEERS, best, medians, point_name, products_time
from benchmarks.reporting.tables import GRID, modules_names, speeds
from benchmarks.reporting.text import load, machine_line

DOCS = ROOT / "docs"
STYLES = {1: "-", 32: "--"}
"""Batch -> the style of its lines."""


def modules_plot(result: dict[str, Any]) -> Figure:
    """Speed against torch.nn over H, the mean over T: a panel for each family, a line for each contestant and batch."""
    families = list(dict.fromkeys(row["family"] for row in result["rows"]))
    names = [name for name in modules_names(result["rows"]) if name != "torch.nn"]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for panel, family in zip(panels, families, strict=True):
        _draw_family(panel, [row for row in result["rows"] if row["family"] == family], names)
        panel.set_title(family)
    panels[0].set_ylabel("speed, torch.nn eager = 1")
    labels: dict[str, Any] = {}
    for panel in panels:
        handles, texts = panel.get_legend_handles_labels()
        labels |= dict(zip(texts, handles, strict=True))
    figure.legend(handles=list(labels.values()), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(machine_line(result), fontsize=7, color="gray")
    return figure


def _draw_family(panel: Axes, rows: list[dict[str, Any]], names: list[str]) -> None:
    sizes = list(dict.fromkeys(row["H"] for row in rows))
    for color, name in enumerate(names):
        if not any(name in row["contestants"] for row in rows):
            continue
        for batch, style in STYLES.items():
            means = []
            for size in sizes:
                points = [
                    row["contestants"] for row in rows if (row["H"], row["B"]) == (size, batch)
                ]
                means.append(geometric_mean(speeds(points, name)))
            panel.plot(
                sizes, means, style, marker="o", ms=4, color=f"C{color}", label=f"{name}, B={batch}"
            )
    panel.axhline(1, color="black", lw=0.8)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xticks(sizes, [f"H={size}" for size in sizes])
    panel.set_yticks([0.25, 0.5, 1, 2, 4])
    panel.yaxis.set_major_formatter(FormatStrFormatter("%gx"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3)


SHOWN_PEERS = ("torch.nn", "native operator", "torch.onnx.export", "OpenVINO")


def grid_plot(result: dict[str, Any]) -> Figure:
    """Time over that of the matrix products alone: a panel for each cell, a line for each point."""
    cells = list(dict.fromkeys(row["cell"] for row in result["rows"]))
    height = (len(cells) + 1) // 2  # panels on top of each other; two lie side by side
    figure = Figure(figsize=(11, 1.5 + 2.4 * height), layout="constrained")
    panels = figure.subplots(height, 2, sharex=True, squeeze=False).flatten()
    for panel, cell in zip(panels, cells, strict=False):
        _draw_cell(panel, [row for row in result["rows"] if row["cell"] == cell])
        panel.set_title(cell)
    for panel in panels[len(cells) :]:
        panel.set_axis_off()
    lowest_panels = panels[max(len(cells) - 2, 0) : len(cells)]
    for panel in lowest_panels:
        panel.set_xlabel("time, matrix products alone = 1")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    figure.suptitle(machine_line(result), fontsize=7, color="gray")
    return figure


def _draw_cell(panel: Axes, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: (row["B"], row["H"], row["T"]), reverse=True)
    best_ratios = [best(row) / products_time(row) for row in rows]
    panel.scatter(best_ratios, range(len(rows)), 45, "C0", label="deploy_rnn, best")
    for color, peer in enumerate(SHOWN_PEERS, start=1):
        for line, row in enumerate(rows):
            times = medians(row)
            ms = min((times[name] for name in PEERS[peer] if name in times), default=float("nan"))
            label = peer if line == 0 else None  # one entry in the legend, not one for each point
            panel.scatter(ms / products_time(row), line, 28, f"C{color}", marker="x", label=label)
    panel.axvline(1, color="black", lw=0.8)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FormatStrFormatter("%gx"))
    sizes = [
        point_name(row).partition(", ")[2] for row in rows
    ]  # without the cell, which is the panel's title
    panel.set_yticks(range(len(rows)), sizes, fontsize=8)
    panel.grid(alpha=0.3)


def draw(figure: Figure, path: Path) -> None:
    with mpl.rc_context(
        {"svg.hashsalt": "deploy-rnn"}
    ):  # so that an equal picture is an equal file
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    draw(modules_plot(load(RESULTS / "torch_modules.json")), DOCS / "torch_modules.svg")
    draw(grid_plot(load(GRID)), DOCS / "grid.svg")


if __name__ == "__main__":
    main()
