"""The tables of the README and docs: `python -m benchmarks.reporting.tables`.

They are made from the JSON in benchmarks/results; what the pages have between two markers is replaced.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks import RESULTS, ROOT
from benchmarks.reporting.cuda_tables import (
    configurations_table,
    cuda_grid_table,
    tests_line,
    ways_table,
)
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
from benchmarks.reporting.precision_tables import (
    cells_section,
    contestants_table,
    precision_sections,
    rounding_ways_table,
)
from benchmarks.reporting.scale_tables import scale_sections
from benchmarks.reporting.serving_tables import TABLES as SERVING_TABLES
from benchmarks.reporting.serving_tables import (
    goals_table,
    grpc_servers_table,
    processes_table,
    serving_in_words,
)
from benchmarks.reporting.summary import leads, medians
from benchmarks.reporting.text import factor, load, machine_line, markdown

GRID = RESULTS / "grid_cpu.json"
Result = dict[str, Any]
"""The JSON of a benchmark."""


def export_table(result: Result) -> str:
    """Seconds, nodes and megabytes (as a share of the weights) of each export, milliseconds to open it, memory."""
    header = [
        "",
        "seconds",
        "nodes",
        "MB (of the weights)",
        "ms to open",
        "MB to export",
        "MB to open",
    ]
    lines = [
        [_export_label(row), *_export_costs(row["measured"], result["limit"])]
        for row in result["rows"]
    ]
    return markdown(header, lines) + "\n\n" + machine_line(result)


def _export_label(row: dict[str, Any]) -> str:
    is_ours = "." not in row["exporter"]  # ours is named by its form, PyTorch's by its function
    exporter = f"deploy_rnn, {row['exporter']}" if is_ours else row["exporter"]
    return f"{exporter}, T={row['T']}, H={row['H']}"


def _export_costs(measured: dict[str, Any] | None, limit: int) -> list[str]:
    if measured is None:  # it was stopped
        return [f"> {limit}", "", "", "", "", ""]
    megabytes = measured["bytes"] / 1e6
    share = measured["bytes"] / measured["weights"]
    load = "" if measured["load"] is None else f"{1e3 * measured['load']:.0f}"
    memory = [f"{measured[key] / 1e6:.0f}" if key in measured else "" for key in ("peak", "memory")]
    return [
        f"{measured['seconds']:.1f}",
        f"{measured['nodes']:,}",
        f"{megabytes:.2f} ({share:.2f}x)",
        load,
        *memory,
    ]


def compile_table(result: Result) -> str:
    """Seconds from the call to the first result, for each number of steps."""
    lines = []
    for row in result["rows"]:
        times = [
            f"> {result['limit']}" if time is None else f"{time:.1f}"
            for time in row["seconds"].values()
        ]
        lines.append([f"{row['family']}, {row['contestant']}", *times])
    headings = [f"T={steps}" for steps in result["rows"][0]["seconds"]]
    return markdown(["seconds", *headings], lines) + "\n\n" + machine_line(result)


def loading_table(result: Result) -> str:
    """Seconds and memory of a loaded model, for each way to open it."""
    lines = []
    for row in result["rows"]:
        megabytes = [f"{row[key] / 1e6:.0f}" for key in ("memory", "peak")]
        lines.append([row["contestant"], f"{row['seconds']:.2f}", *megabytes])
    weights = f"{result['weights'] / 1e6:.0f} MB of weights, {result['sessions']} sessions"
    headings = [weights, "s to open", "MB held", "MB at most"]
    return markdown(headings, lines) + "\n\n" + machine_line(result)


def score_table(result: Result) -> str:
    """Rows a second of each contestant, and how many times as many the last one has, which is `score`."""
    *names, ours = result["rows"][0]["rates"]
    lines = []
    for row in result["rows"]:
        rates = row["rates"]
        cells = [f"{rates[name]:,.0f} ({rates[ours] / rates[name]:.1f}x)" for name in names]
        label = f"{row['family']}, H={row['H']}, {row['count']:,} rows"
        lines.append([label, *cells, f"{rates[ours]:,.0f}"])
    heading = "rows a second (score's multiple)"
    return markdown([heading, *names, ours], lines) + "\n\n" + machine_line(result)


def modules_table(result: Result) -> str:
    """Milliseconds of every contestant at every point, and its speed against torch.nn."""
    return _modules_points(result["rows"]) + "\n\n" + machine_line(result)


def training_table(result: Result) -> str:
    """The same of forward and backward."""
    if not result.get("training"):
        return "Not measured."
    return _modules_points(result["training"]) + "\n\n" + machine_line(result)


def _modules_points(rows: Sequence[dict[str, Any]]) -> str:
    names = modules_names(rows)
    lines = []
    for row in rows:
        times = medians(row)
        eager = times["torch.nn"]
        cells = [
            f"{times[name]:.2f} ({eager / times[name]:.1f}x)" if name in times else ""
            for name in names
        ]
        lines.append([f"{row['family']}, T={row['T']}, B={row['B']}, H={row['H']}", *cells])
    return markdown(["ms (speed)", *names], lines)


def modules_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Everyone who ran at some point: what `compile` did not choose is not there for every layer."""
    return list(dict.fromkeys(name for row in rows for name in row["contestants"]))


def modules_summary(result: Result) -> str:
    """Speed against torch.nn, geometric mean over the points of each family and batch, and the worst point."""
    names = [name for name in modules_names(result["rows"]) if name != "torch.nn"]
    lines = []
    for family in sorted({row["family"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["family"] == family]
        lines.append(_modules_line(family, rows, names))
        for batch in dict.fromkeys(row["B"] for row in rows):
            batch_rows = [row for row in rows if row["B"] == batch]
            lines.append(_modules_line(f"{family}, B={batch}", batch_rows, names))
    header = ["speed, mean (worst point)", *names, "matrix products alone"]
    return markdown(header, lines) + "\n\n" + machine_line(result)


def _modules_line(label: str, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        values = speeds([row["contestants"] for row in rows], name)
        cells.append(f"{factor(geometric_mean(values))} ({factor(min(values))})" if values else "")
    limit = geometric_mean(medians(row)["torch.nn"] / row["products"] for row in rows)
    return [label, *cells, factor(limit)]


def speeds(points: Sequence[Any], name: str) -> list[float]:
    """The speed of one contestant against torch.nn at each point where it ran."""
    return [
        point["torch.nn"]["median"] / point[name]["median"] for point in points if name in point
    ]


def rounding_table(result: Result) -> str:
    """Largest difference of a window's scores: the median window, and the worst."""
    comparisons = {"float32_to_float64": "float32 - float64", "torch_to_deploy_rnn": "two float32"}
    columns = [(comparison, window) for comparison in comparisons for window in ("median", "worst")]
    lines = []
    for name, row in result["rows"].items():
        label = f"{name} (largest singular value {row['gain']:.1f}, scores up to {row['largest_score']:.0f})"
        cells = [f"{row[comparison][window]:.0e}" for comparison, window in columns]
        lines.append([label, *cells])
    headings = [f"{comparisons[comparison]}, {window} window" for comparison, window in columns]
    return markdown(["recurrent weights", *headings], lines) + "\n\n" + machine_line(result)


INT8_TABLES: dict[str, Callable[[Result], str]] = {
    "int8_cells": cells_section,
    "int8_contestants": contestants_table,
    "int8_rounding": rounding_ways_table,
}


def precision_results() -> dict[str, str]:
    """The tables of precisions, if they were measured."""
    found: dict[str, str] = {}
    path = RESULTS / "precision.json"
    if path.exists():
        found |= precision_sections(load(path))
    for name, table in INT8_TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            found[name] = table(load(path))
    return found


def batching_table(result: Result) -> str:
    """Throughput and padding of a flood of requests, latency at a steady rate."""
    header = ["", "requests/s", "padding", "rows of a run", "p50 ms", "p99 ms"]
    lines = []
    for row in result["rows"]:
        measured = row["measured"]
        lines.append(
            [
                row["contestant"],
                f"{measured['rate']:.0f}",
                f"{measured['waste']:.0%}",
                f"{measured['rows']:.1f}",
                f"{measured['p50']:.1f}",
                f"{measured['p99']:.1f}",
            ]
        )
    return markdown(header, lines) + "\n\n" + machine_line(result)


def accuracy_line(metrics: dict[str, Any]) -> str:
    """How well the highlighter does, from the metrics of its training."""
    return (
        f"Accuracy on {metrics['held_out_files']} held-out files ({metrics['held_out_characters']:,} characters, white "
        f"space not counted): **{metrics['accuracy']:.1%}**; always the most frequent label: "
        f"{metrics['majority_class']:.1%}. Trained in {metrics['training_seconds'] / 60:.0f} minutes on "
        f"{metrics['cores']} cores (Python {metrics['python']}, torch {metrics['torch']})."
    )


def in_words(export: Result, grid: Result, lengths: Result) -> str:
    """The three figures of the README: an export, the speed of a file, and a server."""
    return "\n".join(
        [
            f"- {_export_in_words(export)}",
            f"- {_speed_in_words(grid)}",
            f"- {serving_in_words(lengths)}",
            "",
            machine_line(grid),
        ]
    )


def _export_in_words(result: Result) -> str:
    """A bidirectional RNN over 100 steps, by PyTorch's exporter and by ours."""
    measured = {
        row["exporter"]: row["measured"]
        for row in result["rows"]
        if (row["T"], row["H"]) == (100, 128)
    }
    stock = measured["torch.onnx.export"]
    ours = measured["native"]
    return (
        "**Export** a two-layer bidirectional `nn.RNN` on 100 steps: `torch.onnx.export` takes "
        f"{stock['seconds']:.0f} s, writes {stock['nodes']:,} nodes and fixes T. `export_onnx` takes "
        f"{ours['seconds']:.0f} s with its check, writes {ours['nodes']} nodes, and B and T stay dynamic."
    )


def _speed_in_words(result: Result) -> str:
    """The fastest of ours against torch.nn, for each family."""
    eager = ["torch.nn"]
    words = {}
    for family, rows in _by_family(result).items():
        speeds_at_points = [lead for lead, _ in leads(rows, eager)]
        mean_speed = geometric_mean(speeds_at_points)
        words[family] = f"{mean_speed:.1f} times (worst point: {factor(min(speeds_at_points))})"
    return (
        "**Run** it on two cores of a CPU, against `torch.nn`: an RNN is "
        f"{words['RNN']} as fast, a GRU {words['GRU']}, an LSTM {words['LSTM']}. These are means over "
        "sizes, lengths and batches, in the fastest form."
    )


def _by_family(result: Result) -> dict[str, list[Any]]:
    families = {"RNN": ("tanh", "relu"), "GRU": ("GRU",), "LSTM": ("LSTM",)}
    return {
        name: [row for row in result["rows"] if row["cell"] in cells]
        for name, cells in families.items()
    }


def sections() -> dict[str, str]:
    """Every generated part of the README and docs, by the name in its markers."""
    return {
        "export": export_table(load(RESULTS / "export.json")),
        "compile_time": compile_table(load(RESULTS / "compile_time.json")),
        "loading": loading_table(load(RESULTS / "loading.json")),
        "grpc_servers": grpc_servers_table(load(RESULTS / "grpc_servers.json")),
        "score": score_table(load(RESULTS / "score.json")),
        "torch_modules": modules_summary(load(RESULTS / "torch_modules.json")),
        "torch_training": training_table(load(RESULTS / "torch_modules.json")),
        "torch_modules_points": modules_table(load(RESULTS / "torch_modules.json")),
        "rounding": rounding_table(load(RESULTS / "rounding.json")),
        **grid_sections(load(GRID)),
        "cuda_tests": tests_line(load(RESULTS / "cuda_tests.json")),
        "cuda_configurations": configurations_table(load(RESULTS / "cuda_configurations.json")),
        "cuda_grid": cuda_grid_table(load(RESULTS / "grid_cuda.json")),
        "cuda_modules": modules_table(load(RESULTS / "torch_modules_cuda.json")),
        **ways_section(RESULTS / "cuda_ways.json"),
        "in_words": in_words(
            load(RESULTS / "export.json"), load(GRID), load(RESULTS / "serving_lengths.json")
        ),
        **serving_sections(serving_results()),
        **processes_section(RESULTS / "serving_processes.json"),
        **precision_results(),
        **scale_results(),
        "batching": batching_table(load(RESULTS / "batching.json")),
        "highlight": accuracy_line(load(ROOT / "examples" / "highlight" / "metrics.json")),
    }


def grid_sections(result: Result) -> dict[str, str]:
    """Every table of a grid, and its picture as the README and the docs show it."""
    picture = "![Time over that of the matrix products alone]"
    return {
        "grid_picture": f"{picture}(grid.svg)",
        "grid": grid_summary(result),
        "grid_targets": targets_table(result),
        "grid_behind": behind_table(result),
        "grid_engine": engine_table(result),
        "grid_lengths": lengths_table(result),
        "grid_load": load_table(result),
        "grid_points": points_table(result),
        "grid_missing": missing_table(result),
    }


def serving_results() -> dict[str, Result]:
    """Every part of the comparison of servers that was measured."""
    paths = {part: RESULTS / f"serving_{part}.json" for part in SERVING_TABLES}
    return {part: load(path) for part, path in paths.items() if path.exists()}


def serving_sections(results: dict[str, Result]) -> dict[str, str]:
    """The table of each part of the comparison of servers, and what it was to show."""
    part_tables = {
        f"serving_{part}": SERVING_TABLES[part](result) for part, result in results.items()
    }
    return {**part_tables, "serving_goals": goals_table(results)}


def ways_section(path: Path) -> dict[str, str]:
    """Every way to run a layer on a GPU, if it was measured."""
    return {"cuda_ways": ways_table(load(path))} if path.exists() else {}


def processes_section(path: Path) -> dict[str, str]:
    """The table of several servers behind nginx, if they were measured."""
    return {"processes": processes_table(load(path))} if path.exists() else {}


def scale_results() -> dict[str, str]:
    """What docs/scale.md has, once it was measured."""
    measured, plan = RESULTS / "scale.json", RESULTS / "scale_plan.json"
    if not (measured.exists() and plan.exists()):
        return {}
    return scale_sections(load(measured), load(plan))


def fill(text: str) -> str:
    """Regenerate everything between a `<!-- NAME -->` and its `<!-- /NAME -->`."""
    for name, section in sections().items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if end:
            text = before + start + section + "\n" + end + after
    return text


PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "bundle.md",
    ROOT / "docs" / "precision.md",
    ROOT / "docs" / "speed.md",
    ROOT / "docs" / "gpu.md",
    ROOT / "docs" / "serving.md",
    ROOT / "docs" / "many-processes.md",
    ROOT / "docs" / "score.md",
    ROOT / "docs" / "scale.md",
    ROOT / "docs" / "verification.md",
    ROOT / "docs" / "what-was-tried.md",
    ROOT / "examples" / "highlight" / "README.md",
)


def main() -> None:
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
