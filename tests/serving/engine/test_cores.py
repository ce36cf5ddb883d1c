"""`Cores`: the rows of a run are divided among the cores where that is faster; the answer is the same."""

import gc
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_rnn.errors import RunError
from deploy_rnn.export import export_bundle
from deploy_rnn.serving import Engine
from deploy_rnn.serving.engine.cores import ALL_CORES, Cores

AXES = {"x": 1, "scale": 0, "y": 1, "last": 0}
OUTPUTS = ["y", "last"]


class Clock:
    """Time that passes when a session runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Scaled:
    """A session of (T, B) `x` and (B,) `scale`: y is their product, last its last step. A run takes `seconds`."""

    prefers_few_row_counts = False

    def __init__(self, clock: Clock, seconds: Callable[[int], float]) -> None:
        self.clock = clock
        self.seconds = seconds
        self.ran: list[int] = []

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        y = feeds["x"] * feeds["scale"]
        self.ran.append(y.shape[1])
        self.clock.now += self.seconds(y.shape[1])
        if np.isnan(y).any():
            raise RunError("a row of nan.")
        results = {"y": y, "last": y[-1]}
        return [results[name] for name in outputs]

    def specs(self) -> Any:
        return (), ()


def inputs(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(3.0 * rows).reshape(3, rows), "scale": np.arange(1.0, rows + 1)}


def make_cores(
    all_cores: Callable[[int], float], one_core: Callable[[int], float], cores: int
) -> tuple[Cores, Any]:
    """Return `Cores` tuned for 1, 4 and 16 rows, and its open sessions by their threads.

    Args:
        all_cores, one_core: rows -> seconds of one run.
        cores: how many there are.
    """
    clock = Clock()
    sessions = weakref.WeakValueDictionary[int, Scaled]()

    def open_for(threads: int) -> Scaled:
        session = Scaled(clock, one_core if threads == 1 else all_cores)
        sessions[threads] = session
        return session

    runner = Cores(open_for, cores, clock)
    runner.tune(inputs, OUTPUTS, AXES, [1, 4, 16])
    gc.collect()
    return runner, sessions


def one_core_for_many() -> tuple[Cores, Any]:
    """Two cores on one row, one core on 4 rows and more."""
    return make_cores(
        all_cores=lambda rows: 10.0 * rows,
        one_core=lambda rows: 11.0 if rows == 1 else 1.0 * rows,
        cores=2,
    )


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 16, 33])
def test_the_answer_does_not_depend_on_how_it_is_run(rows: int, cores: int) -> None:
    # As many parts as there can be.
    runner, _ = make_cores(
        all_cores=lambda rows: 1e6, one_core=lambda rows: float(rows**3), cores=cores
    )
    y, last = runner.run(inputs(rows), OUTPUTS)
    np.testing.assert_array_equal(y, inputs(rows)["x"] * inputs(rows)["scale"])
    np.testing.assert_array_equal(last, y[-1])
    np.testing.assert_array_equal(runner.run(inputs(rows), ["last"])[0], last)


def test_rows_are_divided_where_that_was_faster() -> None:
    runner, sessions = one_core_for_many()
    assert [runner.parts(rows) for rows in (1, 3, 4, 15, 100)] == [ALL_CORES, ALL_CORES, 1, 1, 1]
    halves, sessions = make_cores(
        all_cores=lambda rows: 10.0 * rows, one_core=lambda rows: 1.0 * rows * rows, cores=2
    )
    assert [halves.parts(rows) for rows in (1, 3, 4, 100)] == [1, 1, 2, 2]
    sessions[1].ran.clear()
    halves.run(inputs(9), OUTPUTS)
    assert sorted(sessions[1].ran) == [4, 5]


def test_as_many_parts_as_is_fastest() -> None:
    runner, sessions = make_cores(
        all_cores=lambda rows: 1e6, one_core=lambda rows: 1.0 if rows == 8 else 100.0, cores=6
    )
    assert runner.parts(16) == 2
    runner, sessions = make_cores(
        all_cores=lambda rows: 1e6, one_core=lambda rows: float(rows**3), cores=6
    )
    assert [runner.parts(rows) for rows in (1, 4, 16)] == [1, 4, 6]
    sessions[1].ran.clear()
    runner.run(inputs(16), OUTPUTS)
    assert sorted(sessions[1].ran) == [2, 2, 3, 3, 3, 3]


def test_the_session_for_all_cores_is_closed_if_it_is_never_the_faster() -> None:
    assert set(one_core_for_many()[1]) == set()
    runner, sessions = one_core_for_many()
    assert set(sessions) == {1, 2}
    runner, sessions = make_cores(
        all_cores=lambda rows: 10.0 * rows, one_core=lambda rows: 1.0 * rows, cores=2
    )
    assert set(sessions) == {1}
    assert runner.run(inputs(2), ["last"])[0].shape == (2,)
    assert runner.specs() == ((), ())
    assert not runner.gains_from_cores(2)


@pytest.mark.parametrize(("one_core", "gains"), [(1.4, False), (1.6, True)])
def test_a_little_faster_is_not_worth_all_cores(one_core: float, gains: bool) -> None:
    """The fastest way for who runs alone is another question."""
    runner, _ = make_cores(all_cores=lambda rows: 1.0, one_core=lambda rows: one_core, cores=2)
    assert runner.parts(1) == ALL_CORES
    assert runner.gains_from_cores(1) is gains


def test_a_run_that_was_held_up_is_not_taken_for_slow() -> None:
    """By another process, while the runs on one core were measured for the first time."""
    times = iter([9.0] * 3)
    runner, _ = make_cores(
        all_cores=lambda rows: 4.0, one_core=lambda rows: next(times, 5.0), cores=2
    )
    assert not runner.gains_from_cores(1)
    times = iter([9.0] * 100)
    runner, _ = make_cores(
        all_cores=lambda rows: 4.0, one_core=lambda rows: next(times, 5.0), cores=2
    )
    assert runner.gains_from_cores(1), "it is always slow"


def test_a_run_beside_others_has_one_core() -> None:
    runner, sessions = make_cores(all_cores=lambda rows: 1.0, one_core=lambda rows: 5.0, cores=2)
    assert runner.gains_from_cores(2)
    for session in sessions.values():
        session.ran.clear()
    assert runner.run(inputs(2), ["last"], one_core=True)[0].shape == (2,)
    assert (sessions[1].ran, sessions[2].ran) == ([2], [])


def test_rows_that_depend_on_each_other_stay_together() -> None:
    clock = Clock()
    sessions = {
        threads: Scaled(clock, lambda rows, threads=threads: 1.0 * threads) for threads in (1, 2)
    }
    runner = Cores(sessions.__getitem__, 2, clock)
    assert runner.tune(inputs, OUTPUTS, {}, [1]) == {1: 1.0}  # seconds
    sessions[1].ran.clear()
    runner.run(inputs(8), OUTPUTS)
    assert sessions[1].ran == [8]


@pytest.mark.parametrize("row", [0, 8])
def test_an_error_in_any_part_is_raised(row: int) -> None:
    runner, _ = make_cores(
        all_cores=lambda rows: 10.0 * rows, one_core=lambda rows: 1.0 * rows * rows, cores=2
    )
    feeds = inputs(9)
    feeds["x"][:, row] = np.nan
    with pytest.raises(RunError, match="a row of nan"):
        runner.run(feeds, OUTPUTS)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be pinned here")
def test_parts_that_use_all_cores_run_on_a_core_each() -> None:
    """With more threads than there are cores, none is pinned."""
    core_ids: list[set[int]] = []  # of each run

    def one_core_seconds(rows: int) -> float:
        core_ids.append(os.sched_getaffinity(0))
        return 1.0

    cores = len(os.sched_getaffinity(0))
    for threads, cores_of_thread in ((cores, 1), (cores + 1, cores)):
        runner, _ = make_cores(lambda rows: 100.0, one_core_seconds, threads)
        core_ids.clear()
        runner._run(inputs(2 * threads), OUTPUTS, threads)
        assert [len(ids) for ids in core_ids] == [cores_of_thread] * threads
    assert len(os.sched_getaffinity(0)) == cores


@pytest.fixture(scope="module")
def layer() -> nn.LSTM:
    return nn.LSTM(3, 5, 2, bidirectional=True)


@pytest.fixture(scope="module")
def bundle(layer: nn.LSTM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cores") / "b"
    export_bundle(
        layer, (torch.randn(6, 2, 3),), folder, forms=["scan", "native"], buckets=[6], sizes=(2,)
    )
    return folder


@pytest.mark.parametrize("steps", [6, 4])
def test_an_engine_whose_runs_are_divided(
    steps: int, layer: nn.LSTM, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Cores, "_seconds", lambda self, feeds, outputs, parts: -parts
    )  # the more parts the better
    engine = Engine(bundle, threads=2)
    engine.warm_up()
    x = torch.randn(steps, 7, 3)
    output, (h_n, c_n) = layer(x)
    outputs = engine.run({"input": x.transpose(0, 1).contiguous().numpy()})
    for name, expected in {"output": output, "h_n": h_n, "c_n": c_n}.items():
        np.testing.assert_allclose(outputs[name], expected.transpose(0, 1).detach(), atol=1e-5)
