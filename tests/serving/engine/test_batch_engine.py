"""`BatchEngine`: several requests in one run, and the trials that allow it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.errors import RunError
from deploy_rnn.export import export_bundle
from deploy_rnn.runtime import CPU
from deploy_rnn.serving import Engine
from deploy_rnn.serving.engine import batch_engine
from deploy_rnn.serving.engine.batch_engine import BatchEngine
from deploy_rnn.serving.engine.opening import open_model
from deploy_rnn.serving.engine.session import Session, translate_errors
from tests.serving.dependent_rows import Centred, Trimmed

KeepGraphs = Callable[..., Path]


def make_engine(folder: Path) -> BatchEngine:
    return BatchEngine(open_model(folder, CPU, threads=1))


def make_tokens(rows: int, steps: int) -> np.ndarray:
    return np.random.default_rng(steps).integers(20, size=(rows, steps))


def run_together(
    engine: BatchEngine, requests: Sequence[Mapping[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    batch = [engine.check_inputs(inputs) for inputs in requests]
    return engine.run(engine.choose(batch), batch, ["output"])


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the first input of every run of a session, while the test lasts."""
    shapes: list[tuple[int, ...]] = []
    run = Session.run

    def record(self: Session, feeds: Any, outputs: Any, *, one_core: bool = False) -> Any:
        shapes.append(next(iter(feeds.values())).shape)
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", record)
    return shapes


def test_requests_in_one_run_get_what_they_get_alone(padded: Path) -> None:
    requests = [
        {"tokens": make_tokens(rows, steps)} for rows, steps in [(1, 9), (2, 30), (1, 1), (3, 16)]
    ]
    requests.append({"tokens": make_tokens(2, 20), "lengths": np.array([3, 20])})
    engine = make_engine(padded)
    for inputs, outputs in zip(requests, run_together(engine, requests), strict=True):
        np.testing.assert_allclose(
            outputs["output"], run_together(engine, [inputs])[0]["output"], atol=1e-5
        )


def test_rows_that_are_added_to_a_run_are_not_in_its_answers(
    padded: Path, runs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for captured graphs: 3 rows become 4. The answers are as many as the requests."""
    requests = [{"tokens": make_tokens(rows, 9)} for rows in (1, 2)]
    engine = make_engine(padded)
    expected = run_together(engine, requests)
    monkeypatch.setattr(Session, "prefers_few_row_counts", True)
    outputs = run_together(engine, requests)
    assert runs[0] == (3, 9)
    assert runs[-1] == (4, 9)
    assert len(outputs) == 2
    for answer, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(answer["output"], other["output"], atol=1e-5)


def test_a_constructor_runs_nothing(padded: Path, runs: list[tuple[int, ...]]) -> None:
    """Nor does a run try anything that its graph does not depend on: here is a graph for any number of steps."""
    engine = Engine(padded, threads=1)
    assert runs == []
    for steps in (16, 11, 40):
        engine.run({"tokens": make_tokens(1, steps)})
    assert runs == [(1, 16), (1, 11), (1, 40)]


def test_the_trials_run_when_they_are_first_needed(
    padded: Path, tmp_path: Path, runs: list[tuple[int, ...]], keep_graphs: KeepGraphs
) -> None:
    folder = keep_graphs(padded, tmp_path / "b", "unrolled-8.onnx", "unrolled-16.onnx")
    engine = Engine(folder, threads=1)
    engine.run({"tokens": make_tokens(1, 16)})
    assert len(runs) == 1
    engine.run({"tokens": make_tokens(1, 11)})  # may it be padded to 16?
    assert runs[1:] == [(2, 8), (1, 8), (1, 8), (1, 16), (1, 8), (1, 16)]
    engine.run({"tokens": make_tokens(1, 5)})
    assert runs[7:] == [(1, 8)]


def test_the_trials_run_once_whoever_needs_them(
    padded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    try_batching = batch_engine.try_batching

    def record(*args: Any, **options: Any) -> Any:
        tried.append(args)
        return try_batching(*args, **options)

    monkeypatch.setattr(batch_engine, "try_batching", record)
    engine = make_engine(padded)
    barrier = Barrier(8)

    def ask(index: int) -> bool:
        barrier.wait()
        return engine.padding_is_harmless() if index % 2 else engine.rows_are_independent()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [True] * 8
    engine.warm_up()
    assert len(tried) == 1


class Smoothed(nn.Module):
    """Looks one step beyond a row's end before its layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Conv1d(3, 4, 3, padding=1)
        self.rnn = nn.GRU(4, 5, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        smooth = self.smooth(x.mT + 1).mT
        packed = nn.utils.rnn.pack_padded_sequence(
            smooth, lengths, batch_first=True, enforce_sorted=False
        )
        output = nn.utils.rnn.pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return output[0]


@pytest.mark.parametrize("layers", [1, 2])
def test_an_output_is_as_long_as_the_longest_row_of_its_own_request(
    layers: int, tmp_path: Path
) -> None:
    model = Trimmed(layers).eval()
    args = (torch.randn(3, 6, 3), torch.tensor([6, 4, 2]))
    export_bundle(model, args, tmp_path / "b", forms=["scan"], sizes=(2,))
    engine = make_engine(tmp_path / "b")
    assert engine.rows_are_independent()
    assert engine.padding_is_harmless()
    requests = []
    for lengths in ([3, 2], [6], [1], [5, 5, 4]):
        x = torch.randn(len(lengths), 6, 3).numpy()
        requests.append({"x": x, "lengths": np.array(lengths)})
    requests.append({"x": torch.randn(1, 5, 3).numpy()})
    for inputs, outputs in zip(requests, run_together(engine, requests), strict=True):
        lengths = torch.from_numpy(inputs.get("lengths", np.array([5])))
        expected = model(torch.from_numpy(inputs["x"]), lengths).detach()
        assert outputs["output"].shape == expected.shape
        np.testing.assert_allclose(outputs["output"], expected, atol=1e-5)


def test_rows_of_unlike_lengths_are_not_divided_among_cores(tmp_path: Path) -> None:
    """Each part would be trimmed to its own longest row."""
    args = (torch.randn(3, 6, 3), torch.tensor([6, 4, 2]))
    export_bundle(Trimmed(), args, tmp_path / "b", forms=["scan"], sizes=(2,))
    engine = Engine(tmp_path / "b", threads=2)
    engine.warm_up()
    lengths = np.arange(16) % 6 + 1
    output = engine.run({"x": torch.randn(16, 6, 3).numpy(), "lengths": lengths})["output"]
    assert output.shape == (16, 6, 3)


def test_a_size_that_no_input_tells_keeps_requests_apart(tmp_path: Path) -> None:
    args = (torch.randn(3, 6, 3),)
    export_bundle(Trimmed(counts=True), args, tmp_path / "b", forms=["scan"], sizes=(2,))
    assert not make_engine(tmp_path / "b").rows_are_independent()


def test_a_model_whose_answers_depend_on_padding_is_not_padded(
    tmp_path: Path, keep_graphs: KeepGraphs
) -> None:
    args = (torch.randn(2, 6, 3), torch.tensor([6, 4]))
    export_bundle(Smoothed(), args, tmp_path / "b", forms=["native"], buckets=[6], sizes=(2,))
    for file in ("native.onnx", "unrolled-6.onnx"):
        engine = make_engine(keep_graphs(tmp_path / "b", tmp_path / file, file))
        assert engine.rows_are_independent()
        assert not engine.padding_is_harmless()


@pytest.mark.parametrize("buckets", [["8", "16"], ["16"]])
def test_a_bundle_of_buckets_pads(
    buckets: list[str], padded: Path, tmp_path: Path, keep_graphs: KeepGraphs
) -> None:
    engine = make_engine(
        keep_graphs(padded, tmp_path / "b", *(f"unrolled-{steps}.onnx" for steps in buckets))
    )
    assert engine.padding_is_harmless()


def test_a_model_without_lengths_is_not_padded(
    exact: Path, tmp_path: Path, keep_graphs: KeepGraphs
) -> None:
    engine = make_engine(keep_graphs(exact, tmp_path / "b", "unrolled-4.onnx"))
    assert engine.rows_are_independent()
    assert not engine.padding_is_harmless()


def test_a_model_whose_rows_touch_each_other_runs_one_request_at_a_time(tmp_path: Path) -> None:
    export_bundle(Centred(), (torch.randn(2, 6, 3),), tmp_path / "b", forms=["native"], sizes=(2,))
    assert not make_engine(tmp_path / "b").rows_are_independent()


def test_a_model_without_a_batch_axis_runs_one_request_at_a_time(tmp_path: Path) -> None:
    export_bundle(nn.RNN(3, 5), (torch.randn(6, 3),), tmp_path / "b", forms=["native"], sizes=(2,))
    assert not make_engine(tmp_path / "b").rows_are_independent()


def test_a_fault_of_onnxruntime_is_not_blamed_on_the_inputs() -> None:
    def fail() -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RunError, match="onnxruntime failed: out of memory"):
        translate_errors(fail)


def test_on_one_core_no_run_is_measured_twice(padded: Path, runs: list[tuple[int, ...]]) -> None:
    make_engine(padded).warm_up(side_by_side=True)
    assert 1 <= runs.count((1, batch_engine.MEASURED_STEPS)) <= 3
