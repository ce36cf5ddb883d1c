"""The README's tables, made from the JSON in benchmarks/results: `python -m benchmarks.reporting.tables`."""

from collections.abc import Sequence
from statistics import geometric_mean
from typing import Any

from benchmarks import RESULTS, ROOT
from benchmarks.reporting.grid_tables import (
    behind_table,
    engine_table,
    grid_summary,
    lengths_table,
    load_table,
    missing_table,
    points_table,
    targets_table,
)
from benchmarks.reporting.text import load, machine_line, markdown

GRID = RESULTS / "grid_cpu.json"
AT = ("median", "worst")


def export_table(result: dict[str, Any]) -> str:
    """Seconds, nodes and megabytes (as a share of the weights) of each export, milliseconds to open it, memory."""
    header = ["", "seconds", "nodes", "MB (of the weights)", "ms to open", "MB to export", "MB to open"]
    rows = [[_exported(row), *_export_costs(row["measured"], result["limit"])] for row in result["rows"]]
    return markdown(header, rows) + "\n\n" + machine_line(result)


def _exported(row: dict[str, Any]) -> str:
    exporter = row["exporter"] if "." in row["exporter"] else f"deploy_rnn, {row['exporter']}"
    return f"{exporter}, T={row['T']}, H={row['H']}"


def _export_costs(measured: dict[str, Any] | None, limit: int) -> list[str]:
    if measured is None:
        return [f"> {limit}", *[""] * 5]
    size = f"{measured['bytes'] / 1e6:.2f} ({measured['bytes'] / measured['weights']:.2f}x)"
    load = "" if measured["load"] is None else f"{1e3 * measured['load']:.0f}"
    return [
        f"{measured['seconds']:.1f}",
        f"{measured['nodes']:,}",
        size,
        load,
        *(f"{measured[at] / 1e6:.0f}" if at in measured else "" for at in ("peak", "memory")),
    ]


def compile_table(result: dict[str, Any]) -> str:
    """Seconds from the call to the first result, for each number of steps."""
    steps = list(result["rows"][0]["seconds"])
    rows = [
        [
            f"{row['family']}, {row['contestant']}",
            *(f"> {result['limit']}" if row["seconds"][at] is None else f"{row['seconds'][at]:.1f}" for at in steps),
        ]
        for row in result["rows"]
    ]
    return markdown(["seconds", *(f"T={at}" for at in steps)], rows) + "\n\n" + machine_line(result)


def modules_table(result: dict[str, Any]) -> str:
    """Milliseconds of every contestant at every point, and its speed against torch.nn."""
    labels = [f"{row['family']}, T={row['T']}, B={row['B']}, H={row['H']}" for row in result["rows"]]
    names = list(result["rows"][0]["contestants"])
    rows = []
    for label, row in zip(labels, result["rows"], strict=True):
        medians = {name: row["contestants"][name]["median"] for name in names}
        rows.append([label, *(f"{ms:.2f} ({medians['torch.nn'] / ms:.1f}x)" for ms in medians.values())])
    return markdown(["ms (speed)", *names], rows) + "\n\n" + machine_line(result)


def modules_summary(result: dict[str, Any]) -> str:
    """Speed against torch.nn, geometric mean over the points of each family and batch, and the worst point."""
    names = [name for name in result["rows"][0]["contestants"] if name != "torch.nn"]
    groups: dict[str, list[Any]] = {}
    for batch in (None, *dict.fromkeys(row["B"] for row in result["rows"])):
        for row in result["rows"]:
            if batch in (None, row["B"]):
                label = row["family"] if batch is None else f"{row['family']}, B={batch}"
                groups.setdefault(label, []).append(row)
    rows = []
    for group, points in sorted(groups.items(), key=lambda each: each[0].partition(",")[0]):
        contests = [point["contestants"] for point in points]
        each = [speeds(contests, name) for name in names]
        limit = geometric_mean(point["contestants"]["torch.nn"]["median"] / point["products"] for point in points)
        rows.append([group, *(f"{geometric_mean(all):.2f}x ({min(all):.2f}x)" for all in each), f"{limit:.2f}x"])
    header = ["speed, mean (worst point)", *names, "matrix products alone"]
    return markdown(header, rows) + "\n\n" + machine_line(result)


def speeds(points: Sequence[Any], name: str) -> list[float]:
    """Of one contestant against torch.nn, at each point."""
    return [point["torch.nn"]["median"] / point[name]["median"] for point in points]


def rounding_table(result: dict[str, Any]) -> str:
    """Largest difference of a window's scores: the median window, and the worst."""
    rows = [
        [
            f"{name} (largest singular value {row['gain']:.1f}, scores up to {row['largest_score']:.0f})",
            *(f"{row[pair][at]:.0e}" for pair in ("float32_to_float64", "torch_to_deploy_rnn") for at in AT),
        ]
        for name, row in result["rows"].items()
    ]
    header = [
        "recurrent weights",
        *(f"{pair}, {at} window" for pair in ("float32 - float64", "two float32") for at in AT),
    ]
    return markdown(header, rows) + "\n\n" + machine_line(result)


def batching_table(result: dict[str, Any]) -> str:
    """Throughput and padding of a flood of requests, latency at a steady rate."""
    header = ["", "requests/s", "padding", "rows of a run", "p50 ms", "p99 ms"]
    rows = [
        [
            row["contestant"],
            f"{row['measured']['rate']:.0f}",
            f"{row['measured']['waste']:.0%}",
            f"{row['measured']['rows']:.1f}",
            *(f"{row['measured'][at]:.1f}" for at in ("p50", "p99")),
        ]
        for row in result["rows"]
    ]
    return markdown(header, rows) + "\n\n" + machine_line(result)


def serving_table(result: dict[str, Any]) -> str:
    """Throughput within the limit, latency at a few rates that all were asked for, padding and overhead."""
    common = [point["rate"] for point in min((row["points"] for row in result["rows"]), key=len)]
    shown = common[:: max(1, len(common) // 2)][:2]
    header = ["", f"requests/s within p99 {result['limit']:.0f} ms", "rows of a run", "padding", "overhead ms"]
    header += [f"p50 / p95 / p99 ms at {rate:.0f}/s" for rate in shown]
    rows = []
    for row in result["rows"]:
        best = row["best"] or {"rate": 0.0, "rows": 0.0}
        at = {
            point["rate"]: " / ".join(f"{point[name]:.1f}" for name in ("p50", "p95", "p99")) for point in row["points"]
        }
        waste = f"{best['waste']:.0%}" if "waste" in best else ""
        rate, together = f"{best['rate']:.0f}", f"{best['rows']:.1f}"
        rows.append([row["contestant"], rate, together, waste, f"{row['overhead']:.2f}", *(at[each] for each in shown)])
    return markdown(header, rows) + "\n\n" + machine_line(result)


def accuracy_line(metrics: dict[str, Any]) -> str:
    return (
        f"Accuracy on {metrics['held_out_files']} held-out files ({metrics['held_out_characters']:,} characters, white "
        f"space not counted): **{metrics['accuracy']:.1%}**; always the most frequent label: "
        f"{metrics['majority_class']:.1%}. Trained in {metrics['training_seconds'] / 60:.0f} minutes on "
        f"{metrics['cores']} cores (Python {metrics['python']}, torch {metrics['torch']})."
    )


def sections() -> dict[str, str]:
    """Every generated part of the README, by the name in its markers."""
    return {
        "export": export_table(load(RESULTS / "export.json")),
        "compile_time": compile_table(load(RESULTS / "compile_time.json")),
        "torch_modules": modules_summary(load(RESULTS / "torch_modules.json")),
        "torch_modules_points": modules_table(load(RESULTS / "torch_modules.json")),
        "rounding": rounding_table(load(RESULTS / "rounding.json")),
        **grid_sections(load(GRID)),
        "serving": serving_table(load(RESULTS / "serving.json")),
        "batching": batching_table(load(RESULTS / "batching.json")),
        "highlight": accuracy_line(load(ROOT / "examples" / "highlight" / "metrics.json")),
    }


def grid_sections(result: dict[str, Any]) -> dict[str, str]:
    """Every table of a grid, and its picture as the README and the docs show it."""
    picture = "![Time over that of the matrix products alone]"
    return {
        "grid_picture": f"{picture}(docs/grid.svg)",
        "grid_picture_here": f"{picture}(grid.svg)",
        "grid": grid_summary(result),
        "grid_targets": targets_table(result),
        "grid_behind": behind_table(result),
        "grid_engine": engine_table(result),
        "grid_lengths": lengths_table(result),
        "grid_load": load_table(result),
        "grid_points": points_table(result),
        "grid_missing": missing_table(result),
    }


def filled(text: str) -> str:
    """`text` with what stands between `<!-- NAME -->` and `<!-- /NAME -->` made anew."""
    for name, section in sections().items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        text = before + start + section + "\n" + end + after if end else text
    return text


PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "speed.md",
    ROOT / "docs" / "serving.md",
    ROOT / "docs" / "verification.md",
    ROOT / "examples" / "highlight" / "README.md",
)


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
