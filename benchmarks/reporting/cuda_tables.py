"""The tables of what runs on a GPU: how far it is from torch.nn, and how long it takes."""

from collections import defaultdict
from typing import Any

from benchmarks.reporting.text import machine_line, markdown

HEADER = [
    "cell, form", "files", "runs", "largest difference, float32", "the same file on the CPU",
    "float64", "nodes on CUDA", "on the CPU",
]  # fmt: skip


def configurations_table(result: dict[str, Any]) -> str:
    """A line for each cell and form: its worst file, and where the nodes of all its files ran."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        groups[f"{row['cell']}, {row['form']}"].append(row)
    lines = [[label, *_group_line(rows)] for label, rows in groups.items()]
    return markdown(HEADER, lines) + "\n\n" + machine_line(result)


CONTESTANTS = {
    "torch.nn": "torch.nn (cuDNN)",
    "deploy_rnn": "deploy_rnn",
    "deploy_rnn, compiled": "deploy_rnn, compiled",
    "onnxruntime, unrolled": "unrolled",
    "onnxruntime, scan": "scan",
    "onnxruntime, native": "native",
    "onnxruntime, native, CUDA graph": "native, captured",
}
"""Contestants of the GPU grid, and their columns."""


WAYS = {
    "torch.nn": "torch.nn (cuDNN)",
    "deploy_rnn, library": "compiled, library",
    "deploy_rnn, scan, reduce-overhead": "compiled, scan, reduce-overhead",
    "deploy_rnn, packaged": "packaged",
    "onnxruntime, native": "native",
    "onnxruntime, unrolled": "unrolled",
    "onnxruntime, unrolled, CUDA graph": "unrolled, captured",
}
"""Contestants of benchmarks.studies.cuda_ways, and their columns."""


def ways_table(result: dict[str, Any]) -> str:
    """Milliseconds of every contestant at every point and in every dtype, and its speed against torch.nn."""
    lines = []
    for row in result["rows"]:
        eager = row["contestants"]["torch.nn"]["median"]
        cells = [_milliseconds_and_speed(row, name, eager) for name in WAYS]
        lines.append([f"{_point(row)}, {row['dtype']}", *cells])
    return markdown(["ms (speed)", *WAYS.values()], lines) + "\n\n" + machine_line(result)


def _milliseconds_and_speed(row: dict[str, Any], name: str, eager: float) -> str:
    if name not in row["contestants"]:
        return ""
    return f"{_milliseconds(row, name)} ({eager / row['contestants'][name]['median']:.1f}x)"


def tests_line(result: dict[str, Any]) -> str:
    """How many tests ran on the GPU."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in result["counts"].items())
    return f"Tests marked `cuda`: {counts}. {machine_line(result)}"


def cuda_grid_table(result: dict[str, Any]) -> str:
    """Milliseconds of every contestant at every point."""
    header = ["milliseconds", *CONTESTANTS.values()]
    lines = [
        [_point(row), *(_milliseconds(row, name) for name in CONTESTANTS)] for row in result["rows"]
    ]
    return markdown(header, lines) + "\n\n" + machine_line(result)


def _point(row: dict[str, Any]) -> str:
    return f"{row['cell']}, H={row['H']}, B={row['B']}"


def _milliseconds(row: dict[str, Any], name: str) -> str:
    timing = row["contestants"].get(name)
    return "" if timing is None else f"{timing['median']:.2f}"


def _group_line(rows: list[dict[str, Any]]) -> list[str]:
    checked = [row for row in rows if "refused" not in row]
    single = [row for row in checked if row["dtype"] == "float32"]
    double = [row for row in checked if row["dtype"] == "float64"]
    return [
        f"{len(checked)} of {len(rows)}",
        str(sum(row["runs"] for row in checked)),
        _largest(single, "cuda"),
        _largest(single, "cpu"),
        _largest(double, "cuda"),
        str(_nodes(checked, "CUDAExecutionProvider")),
        str(_nodes(checked, "CPUExecutionProvider")),
    ]


def _largest(rows: list[dict[str, Any]], key: str) -> str:
    return f"{max(row[key] for row in rows):.1e}" if rows else ""


def _nodes(rows: list[dict[str, Any]], provider: str) -> int:
    return sum(row["nodes"].get(provider, 0) for row in rows)
