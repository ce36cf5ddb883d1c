"""The table of what runs on a GPU, and how far it is from torch.nn."""

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
