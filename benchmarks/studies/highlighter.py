"""How many characters the highlighter of the examples gets right, in each precision."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.progress import track

from deploy_rnn.examples.highlight.labels import LABELS
from deploy_rnn.examples.highlight.model import WINDOW, join, load, windows
from deploy_rnn.examples.highlight.train import Labelled, read
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.saving import save
from deploy_rnn.runtime import open_session

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "float32": {},
    "float16": {"precision": "float16"},
    "int8": {"precision": "int8"},
    "int8, all layers": {"precision": "int8", "int8_layers": ("linear", "embedding")},
}
"""What it is called -> the options of its export."""

ROWS = 256
"""Windows in one run."""


def highlighter_accuracy(files: int) -> dict[str, dict[str, float]]:
    """The share of characters of held-out files that get their label, and the kilobytes of the file."""
    held_out = read(held_out=True)[:files]
    example = torch.randint(2, 90, (2, WINDOW))
    options = ExportOptions(dynamic_shapes={"characters": {0: "B", 1: "T"}})
    results = {}
    with TemporaryDirectory() as folder:
        for name, variant in VARIANTS.items():
            path = Path(folder) / "highlighter.onnx"
            captured = CapturedModel.of(
                load(), (example,), None, replace(options, **variant), dynamic_time=True
            )
            save(captured.written("scan", max_nodes=options.max_nodes), path)
            results[name] = {
                "accuracy": accuracy(path, held_out, name),
                "kilobytes": path.stat().st_size / 1e3,
            }
    return results


def accuracy(path: Path, files: Labelled, name: str) -> float:
    """White space does not count."""
    session = open_session(path)
    right = 0
    total = 0
    for codes, labels in track(files, f"highlighting in {name}"):
        scores = [run(session, part) for part in parts(windows(codes))]
        predicted = join(np.concatenate(scores), len(codes))
        visible = labels != LABELS.index("space")
        right += int((predicted == labels)[visible].sum())
        total += int(visible.sum())
    return right / total


def parts(rows: np.ndarray) -> Sequence[np.ndarray]:
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]


def run(session: Any, rows: np.ndarray) -> np.ndarray:
    return np.asarray(session.run(None, {"characters": rows})[0])
