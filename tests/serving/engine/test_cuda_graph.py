"""`CudaGraph` without a GPU: which runs share a capture. tests/serving/engine/test_bundles.py runs it on one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from deploy_rnn.errors import RunError
from deploy_rnn.serving.engine import cuda_graph
from deploy_rnn.serving.engine.cuda_graph import CudaGraph
from deploy_rnn.serving.engine.session import Runner


class Value:
    """Stands in for a tensor on the GPU."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.copy()

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.shape == self.array.shape
        assert array.flags.c_contiguous
        self.array[...] = array

    def numpy(self) -> np.ndarray:
        return self.array.copy()


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = value


class Output:
    def __init__(self, name: str) -> None:
        self.name = name


class Doubling:
    """A session of `x` whose outputs are y = 2 x and z = 3 x; `captures` has the number of every run."""

    def __init__(self) -> None:
        self.captures: list[str] = []

    def get_outputs(self) -> list[Output]:
        return [Output("y"), Output("z")]

    def io_binding(self) -> Binding:
        return Binding()

    def run(
        self, names: Sequence[str], feeds: Mapping[str, np.ndarray], options: Any
    ) -> list[np.ndarray]:
        self.captures.append(options.get_run_config_entry("gpu_graph_id"))
        results = {"y": 2 * feeds["x"], "z": 3 * feeds["x"]}
        return [results[name] for name in names]

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        self.captures.append(options.get_run_config_entry("gpu_graph_id"))
        x = binding.inputs["x"].array
        if np.isnan(x).any():
            raise RuntimeError("not a number")
        binding.outputs["y"].array[...] = 2 * x
        binding.outputs["z"].array[...] = 3 * x


def never() -> Runner:
    raise AssertionError("this graph can be captured")


class Uncapturable(Doubling):
    """A session that fails in the middle of a capture, as a Concat of many tensors does."""

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        raise RuntimeError("CUDA Concat supports at most 32 inputs during CUDA Graph capture")


class Plain(Runner):
    """The same graph, opened without captures."""

    prefers_few_row_counts = False

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        self.runs += 1
        return [{"y": 2 * feeds["x"], "z": 3 * feeds["x"]}[name] for name in outputs]


def test_one_capture_for_each_set_of_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_on_gpu", Value)
    session = Doubling()
    runner = CudaGraph(session, never)
    for rows in (1, 2, 1, 2):
        x = np.random.default_rng(rows).normal(size=(3, rows)).T  # not contiguous
        z, y = runner.run({"x": x}, ["z", "y"])
        np.testing.assert_array_equal(y, 2 * x)
        np.testing.assert_array_equal(z, 3 * x)
    assert session.captures == ["-1", "0", "-1", "1", "0", "1"]  # -1: a plain run, before a capture
    with pytest.raises(RunError, match="onnxruntime failed: not a number"):
        runner.run({"x": np.full((1, 3), np.nan)}, ["y"])
    assert runner.tune(lambda rows: {}, ["y"], {}, [1, 2]) == {}


def test_a_graph_that_cannot_be_captured_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_on_gpu", Value)
    session = Uncapturable()
    plain = Plain()
    runner = CudaGraph(session, lambda: plain)
    for rows in (1, 2, 1):
        x = np.ones((rows, 3))
        (y,) = runner.run({"x": x}, ["y"])
        np.testing.assert_array_equal(y, 2 * x)
    assert plain.runs == 3
    assert session.captures == ["-1"]  # the first run alone was to be captured
