"""Requests that share a run stay within the sizes that the model takes, and none is padded out of its own."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn.errors import InputError
from deploy_rnn.export import export_bundle
from deploy_rnn.serving import Limits, Model, Request


class Crowded(nn.Module):
    """Tells rows of a crowd by their number."""

    def __init__(self, *, most_rows: int = 0, least_rows: int = 0, most_steps: int = 0) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.most_rows = most_rows
        self.least_rows = least_rows
        self.most_steps = most_steps

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output: Tensor = pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=x.size(1)
        )[0]
        if self.most_rows and x.size(0) > self.most_rows:
            output = output * 2
        if self.least_rows and x.size(0) < self.least_rows:
            output = output * 3
        if self.most_steps and x.size(1) > self.most_steps:
            output = output * 5
        return output


def answers(model: nn.Module, x: np.ndarray) -> np.ndarray:
    lengths = torch.full((x.shape[0],), x.shape[1])
    with torch.no_grad():
        expected: np.ndarray = model(torch.from_numpy(x), lengths).numpy()
    return expected


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def write(model: nn.Module, folder: Path, rows: int = 3, **options: Any) -> Path:
    example = (torch.randn(rows, 6, 3), torch.full((rows,), 6))
    with pytest.warns(UserWarning, match="can have a size of"):
        export_bundle(model, example, folder, **options)
    return folder


def ask_all(model: Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Submit all at once; `max_wait` gives them time to meet."""
    futures: list[Future[Any]] = [model.submit(Request({"x": x})) for x in inputs]
    return [future.result().outputs["output"] for future in futures]


def check(model: nn.Module, path: Path, inputs: list[np.ndarray], limits: Limits) -> int:
    """Every request gets PyTorch's answer to it alone; returns the number of runs."""
    with Model(path, limits=limits) as served:
        for x, answer in zip(inputs, ask_all(served, inputs), strict=True):
            np.testing.assert_allclose(answer, answers(model, x), atol=1e-5)
        return served.statistics().executions


def test_shared_runs_have_no_more_rows_than_the_model_takes(tmp_path: Path) -> None:
    model = Crowded(most_rows=4).eval()
    path = write(model, tmp_path / "m", forms=["scan"])
    inputs = [draw(2, steps, 3) for steps in (6, 6, 6, 6, 6)]
    runs = check(model, path, inputs, Limits(max_wait=0.2))
    assert 3 <= runs < 5
    with Model(path) as served:
        assert served.max_batch == 4
        with pytest.raises(
            InputError, match="axis 0 of `x`, B, has size 5; the model takes 1 to 4"
        ):
            served.submit(Request({"x": draw(5, 6, 3)}))


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_that_must_be_several_stay_together(threads: int, tmp_path: Path) -> None:
    model = Crowded(least_rows=2).eval()
    path = write(model, tmp_path / "m", forms=["scan"])
    with Model(path, threads=threads) as served:
        for rows in (2, 3, 5, 16):
            x = draw(rows, 6, 3)
            np.testing.assert_allclose(ask_all(served, [x])[0], answers(model, x), atol=1e-5)
        with pytest.raises(
            InputError, match="axis 0 of `x`, B, has size 1; the model takes 2 or more"
        ):
            served.submit(Request({"x": draw(1, 6, 3)}))


def test_no_request_is_padded_out_of_its_range(tmp_path: Path) -> None:
    model = Crowded(most_steps=10).eval()
    path = write(model, tmp_path / "m", forms=["scan"], buckets=[8, 12])
    # 9 and 10 steps would be padded to 12, and 7 to 8, if only the time counted.
    inputs = [draw(1, steps, 3) for steps in (7, 9, 10, 12, 12, 8, 1)]
    check(model, path, inputs, Limits(max_wait=0.2, max_waste=0.9))
    with Model(path) as served, pytest.raises(InputError, match="axis 1 of `x`, T, has size 11"):
        served.submit(Request({"x": draw(1, 11, 3)}))


def test_a_bundle_of_buckets_alone(tmp_path: Path) -> None:
    model = Crowded(most_steps=10).eval()
    path = write(model, tmp_path / "m", forms=["unrolled"], buckets=[4, 8, 12])
    inputs = [draw(1, steps, 3) for steps in (4, 8, 12)]
    check(model, path, inputs, Limits(max_wait=0.2, max_waste=0.9))
    with Model(path) as served, pytest.raises(InputError, match="the inputs have 9 steps"):
        served.submit(Request({"x": draw(1, 9, 3)}))
