"""The outputs of a session are compared in the same way for every runtime."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from deploy_rnn import timing
from deploy_rnn.checking.tolerance import Expected, Tolerance
from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.export.onnx_file import OnnxFile
from deploy_rnn.export.verification.cases import Case, InChunks, Run
from deploy_rnn.export.verification.runs import Plan, Session
from deploy_rnn.tensor_spec import TensorSpec

FILE = OnnxFile(
    path="folder/sums.onnx",
    form=None,
    lengths={},
    states={"total0": "total_n"},
    time={"x": 0},
    producer="",
    opsets={"": 18},
    inputs=(TensorSpec("x", "float32", ("T",)), TensorSpec("total0", "float32", (1,))),
    outputs=(TensorSpec("sums", "float32", ("T",)), TensorSpec("total_n", "float32", (1,))),
    nodes=1,
    node_types={"CumSum": 1},
    file_bytes=0,
    bytes=0,
    weight_bytes=0,
    missing_data={},
    metadata={},
)
X = np.array([1, 2, 3, 4, 5], np.float32)
FEEDS = {"x": X, "total0": np.zeros(1, np.float32)}
SUMS = Expected(np.cumsum(X), rounding=0.0)


def cumulative_sums(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
    """A runtime that needs no file."""
    sums = feeds["total0"] + np.cumsum(feeds["x"])
    return [sums, sums[-1:]]


def forgetful_sums(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
    sums = np.cumsum(feeds["x"])
    return [sums, sums[-1:]]


def session(run: Run, case: Case) -> Session:
    plan = Plan(Path("x.onnx"), FILE, [case], [case], Tolerance(), time_axes={"sums": 0})
    return Session(run, "abacus", plan, optimized=True)


def test_a_chunk_begins_with_the_states_of_the_one_before() -> None:
    case = InChunks("in chunks", FEEDS, [SUMS], FILE, chunks=[2, 1, 2])
    correct = session(cumulative_sums, case)
    correct.check(case)
    assert [comparison.ok for comparison in correct.comparisons] == [True]
    wrong = session(forgetful_sums, case)
    wrong.check(case)
    (comparison,) = wrong.comparisons
    assert (comparison.provider, comparison.output, comparison.first_bad_step) == (
        "abacus",
        "sums",
        2,
    )
    assert comparison.max_abs_error == 6
    assert wrong.over_time[0].errors == (0, 0, 3, 6, 6)


def test_the_states_of_a_streaming_file_are_not_compared() -> None:
    case = Case("example", FEEDS, [SUMS])
    checked = session(cumulative_sums, case)
    checked.check(case)
    assert [comparison.output for comparison in checked.comparisons] == ["sums"]


def test_a_run_that_fails_is_named() -> None:
    def fail(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        raise OSError("no beads")

    case = Case("example", FEEDS, [SUMS])
    with pytest.raises(ExportError, match=r"^sums.onnx fails on example: no beads$"):
        session(fail, case).check(case)


def test_another_dtype_is_not_the_model() -> None:
    case = Case("example", FEEDS, [SUMS])

    def wide(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        return [output.astype(np.float64) for output in cumulative_sums(feeds)]

    with pytest.raises(
        VerificationError, match=r"`sums` is float64\[5\] on example, PyTorch gives float32\[5\]\.$"
    ):
        session(wide, case).check(case)


def test_a_case_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In milliseconds: here the clock moves on by 2 ms whenever it is read."""
    clock = itertools.count(0.0, 0.002)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    case = Case("example", FEEDS, [SUMS])
    assert session(cumulative_sums, case).milliseconds(case) == pytest.approx(2)
