"""What is sent to a server, and what PyTorch answers: rows for one model, kept in a file. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOLERANCE = 1e-3
"""Largest difference from PyTorch of an answer that is right, absolute and relative to the score."""


class FailedError(Exception):
    """What came back is not an answer, but an error of the server."""


@dataclass(frozen=True)
class Traffic:
    """
    Attributes:
        model: its name at the server.
        rows: int64 (1, T) of each request.
        answers: float32 (1, T, labels), PyTorch's answer to each.
    """

    model: str
    rows: list[np.ndarray]
    answers: list[np.ndarray]

    def save(self, path: Path) -> None:
        steps = [row.shape[1] for row in self.rows]
        rows = np.concatenate(self.rows, axis=1)
        answers = np.concatenate(self.answers, axis=1)
        np.savez(path, model=self.model, steps=steps, rows=rows, answers=answers)

    @classmethod
    def load(cls, path: Path) -> "Traffic":
        with np.load(path) as arrays:
            ends = np.cumsum(arrays["steps"])[:-1]
            rows = [np.ascontiguousarray(row) for row in np.split(arrays["rows"], ends, axis=1)]
            answers = np.split(arrays["answers"], ends, axis=1)
            return cls(str(arrays["model"]), rows, answers)


def draw_rows(count: int, longest: int, symbols: int) -> list[np.ndarray]:
    """Rows of 1 to `longest` steps (uniform), of numbers below `symbols`: the same in every run."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, longest + 1, count)
    return [random.integers(0, symbols, (1, steps)) for steps in lengths]


def difference(answer: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; 1 is what TOLERANCE allows. Infinite if shapes differ or a score is not a number."""
    if answer.shape != expected.shape:
        return float("inf")
    allowed = TOLERANCE * (1 + np.abs(expected))
    largest = float(np.max(np.abs(answer - expected) / allowed))
    return float("inf") if np.isnan(largest) else largest
