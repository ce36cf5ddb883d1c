"""What all tables are made of."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is on the left and whose others are on the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


def machine_line(result: dict[str, Any]) -> str:
    machine = result["machine"]
    where = [f"{machine['cpu']}, {machine['cores']} cores"]
    if "gpu" in machine:
        where.append(f"{machine['gpu']}, CUDA {machine['cuda']}, {machine['driver']}")
    names = [name for name in ("python", "torch", "onnxruntime", "onnx", "onnxscript", "openvino") if name in machine]
    return f"Measured on {'; '.join(where)}; {', '.join(f'{name} {machine[name]}' for name in names)}."


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
