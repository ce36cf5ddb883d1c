"""Helpers of all tables: Markdown, the line that names the machine, reading JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its first column aligned left and the others right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


def factor(value: float) -> str:
    return f"{value:.2f}x"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def machine_line(result: dict[str, Any]) -> str:
    """What a result was measured on."""
    machine = result["machine"]
    processors = f"{machine['cpu']}, {machine['cores']} cores"
    if "gpu" in machine:
        processors += f"; {machine['gpu']}, CUDA {machine['cuda']}, {machine['driver']}"
    packages = ("python", "torch", "onnxruntime", "onnx", "onnxscript", "openvino")
    versions = [f"{package} {machine[package]}" for package in packages if package in machine]
    return f"Measured on {processors}; {', '.join(versions)}."


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
