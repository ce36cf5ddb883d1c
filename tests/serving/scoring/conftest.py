"""A small bundle whose rows may have any length, rows for it, and what `Engine` answers to each."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.export import export_bundle
from deploy_rnn.serving import Engine


class Reader(nn.Module):
    """tokens (B, T), weight (B,), lengths (B,) -> marks (B, T, 2), sentence (B, 3)"""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 3)
        self.rnn = deploy_rnn.GRU(3, 4, batch_first=True)
        self.mark = nn.Linear(4, 2)
        self.judge = nn.Linear(4, 3)

    def forward(
        self, tokens: Tensor, weight: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        outputs, states = self.rnn(self.embed(tokens), None, lengths)
        return self.mark(outputs), self.judge(states[-1]) * weight[:, None]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("bundles") / "reader"
    example = (torch.randint(20, (2, 7)), torch.rand(2), torch.tensor([7, 4]))
    names = ["marks", "sentence"]
    export_bundle(
        Reader().eval(), example, folder, forms=["native"], sizes=(2,), output_names=names
    )
    return folder


@pytest.fixture(scope="session")
def engine(bundle: Path) -> Engine:
    return Engine(bundle, threads=1)


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """100 rows of 1 to 30 steps."""
    random = np.random.default_rng(4)
    made = []
    for number in range(100):
        tokens = random.integers(20, size=random.integers(1, 31)).tolist()
        made.append({"tokens": tokens, "weight": number / 8})
    return made


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Rows -> a file of JSON lines."""

    def write(rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def answer(engine: Engine) -> Callable[[dict[str, Any]], dict[str, np.ndarray]]:
    """A row -> what `Engine` answers to it alone, without the batch axis."""

    def run(row: dict[str, Any]) -> dict[str, np.ndarray]:
        inputs = {
            "tokens": np.array([row["tokens"]], np.int64),
            "weight": np.array([row["weight"]], np.float32),
        }
        if "lengths" in row:
            inputs["lengths"] = np.array([row["lengths"]], np.int64)
        return {name: array[0] for name, array in engine.run(inputs).items()}

    return run
