"""The README's pictures, drawn from the JSON in benchmarks/results: `python -m benchmarks.reporting.plots`."""

from pathlib import Path
from statistics import geometric_mean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

from benchmarks import RESULTS, ROOT
from benchmarks.reporting.summary import PEERS, ours, place
from benchmarks.reporting.tables import GRID, speeds
from benchmarks.reporting.text import load, machine_line

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


SHOWN = ("torch.nn", "native operator", "torch.onnx.export", "OpenVINO")


def grid_plot(result: dict[str, Any]) -> Figure:
    """Time over that of the matrix products alone: a panel for each cell, a line for each point."""
    cells = list(dict.fromkeys(row["cell"] for row in result["rows"]))
    figure = Figure(figsize=(11, 1.5 + 2.4 * ((len(cells) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(cells) + 1) // 2, 2, sharex=True, squeeze=False).flatten()
    for panel, cell in zip(panels, cells, strict=False):
        _cell(panel, [row for row in result["rows"] if row["cell"] == cell])
        panel.set_title(cell)
    for panel in panels[len(cells) :]:
        panel.set_axis_off()
    for panel in panels[max(len(cells) - 2, 0) : len(cells)]:
        panel.set_xlabel("time, matrix products alone = 1")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(machine_line(result), fontsize=7, color="gray")
    return figure


def _cell(panel: Axes, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: (row["B"], row["H"], row["T"]), reverse=True)
    floors = [min(row["products"].values()) for row in rows]
    best = [min(ours(row).values()) for row in rows]
    panel.scatter(
        [ms / floor for ms, floor in zip(best, floors, strict=True)],
        range(len(rows)),
        45,
        "C0",
        label="deploy_rnn, best",
    )
    for color, peer in enumerate(SHOWN, start=1):
        for at, (row, floor) in enumerate(zip(rows, floors, strict=True)):
            times = [row["contestants"][name]["median"] for name in PEERS[peer] if name in row["contestants"]]
            ms = min(times, default=float("nan"))
            panel.scatter(ms / floor, at, 28, f"C{color}", marker="x", label=peer if at == 0 else None)
    panel.axvline(1, color="black", lw=0.8)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FormatStrFormatter("%gx"))
    panel.set_yticks(range(len(rows)), [place(row).partition(", ")[2] for row in rows], fontsize=8)
    panel.grid(alpha=0.3)


def draw(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "deploy-rnn"}):  # the same picture, the same file
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    draw(modules_plot(load(RESULTS / "torch_modules.json")), DOCS / "torch_modules.svg")
    draw(grid_plot(load(GRID)), DOCS / "grid.svg")


if __name__ == "__main__":
    main()
