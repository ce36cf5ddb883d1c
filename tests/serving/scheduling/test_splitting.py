"""A request of more rows than a run takes runs in pieces; its client sees one answer, or one error."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_rnn.errors import BusyError, DeadlineError, InputError, RunError, TooLargeError
from deploy_rnn.export import export_bundle
from deploy_rnn.serving import Limits, Model, Request
from deploy_rnn.serving.scheduling import model as module
from deploy_rnn.serving.scheduling.request import Response
from tests.serving.dependent_rows import Centred, Trimmed


class Runs:
    """The runs of a model, which wait while `gate` is closed.

    Attributes:
        rows: of each segment of each run.
        fails: raised by a run, if its first token is this one.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[int]] = []
        self.fails: int | None = None
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        real = module.execute

        def execute(engine: Any, batch: Any, get_all_cores: Any) -> Any:
            self.entered.set()
            assert self.gate.wait(30)
            jobs = [job for segment in batch for job in segment]
            self.rows.append([job.rows for job in jobs])
            if any(job.feeds.arrays["tokens"][0, 0] == self.fails for job in jobs):
                raise RunError("no memory.")
            return real(engine, batch, get_all_cores)

        monkeypatch.setattr(module, "execute", execute)

    @contextmanager
    def held(self, model: Model) -> Iterator[None]:
        """What is submitted inside the block waits behind a run that has begun."""
        self.gate.clear()
        self.entered.clear()
        first = model.submit(Request({"tokens": tokens(1, 5)}))
        assert self.entered.wait(30)
        try:
            yield
        finally:
            self.gate.set()
        first.result(30)
        self.rows.remove([1])


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def tokens(rows: int, steps: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(20, size=(rows, steps))


def expected(model: nn.Module, *inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        answer: np.ndarray = model(*map(torch.from_numpy, inputs)).numpy()
    return answer


def ask(model: Model, array: np.ndarray, **options: Any) -> "Future[Response]":
    return model.submit(Request({"tokens": array}, **options))


def test_rows_keep_their_order(padded: Path, tagger: nn.Module, runs: Runs) -> None:
    array = tokens(19, 7)
    lengths = np.arange(19) % 7 + 1
    with Model(padded, threads=1, limits=Limits(max_rows=8)) as model:
        response = model.infer(Request({"tokens": array, "lengths": lengths}))
        statistics = model.statistics()
    output = response.outputs["output"]
    assert output.shape == (19, 7, 3)
    np.testing.assert_allclose(output, expected(tagger, array, lengths), atol=1e-5)
    assert runs.rows == [[6], [6], [7]]
    assert (statistics.successes, statistics.rows, statistics.executions) == (1, 19, 3)
    assert statistics.queued == 0
    assert response.rows == 7
    assert response.queued + response.computed == statistics.request_durations.seconds


def test_on_several_cores(exact: Path, tagger: nn.Module) -> None:
    array = tokens(100, 5)
    with Model(exact, threads=3, limits=Limits(max_rows=4)) as model:
        futures = [ask(model, array) for _ in range(4)]
        for future in futures:
            output = future.result(30).outputs["output"]
            np.testing.assert_allclose(output, expected(tagger, array), atol=1e-5)


def test_rows_times_steps_are_a_limit_of_each_run(padded: Path, runs: Runs) -> None:
    with Model(padded, threads=1, limits=Limits(max_rows=4, max_row_steps=40)) as model:
        assert ask(model, tokens(10, 10)).result(30).outputs["output"].shape == (10, 10, 3)
        with pytest.raises(TooLargeError, match="each run of the request has 4 rows of 11 steps"):
            ask(model, tokens(10, 11))
    assert runs.rows == [[3], [3], [4]]


def test_states_that_the_client_carries_are_split_too(
    streaming: Path, stream_model: nn.Module
) -> None:
    """A stream that the server holds is not: its rows belong together."""
    array = tokens(7, 6)
    with Model(streaming, limits=Limits(max_rows=3)) as model:
        first = model.infer(Request({"tokens": array[:, :4]})).outputs
        states = {"rnn.h0": first["rnn.h_n"], "rnn.c0": first["rnn.c_n"]}
        second = model.infer(Request({"tokens": array[:, 4:], **states})).outputs
        with pytest.raises(InputError, match=r"7 rows; send at most 3 .*: a chunk of a stream is"):
            model.submit(Request({"tokens": array}, sequence="s", start=True))
    output = np.concatenate([first["output"], second["output"]], axis=1)
    np.testing.assert_allclose(output, expected(stream_model, array), atol=1e-5)


def test_every_piece_is_as_long_as_the_longest_row(tmp_path: Path) -> None:
    model = Trimmed(padding=7.0).eval()
    args = (torch.randn(3, 6, 3), torch.tensor([6, 4, 2]))
    export_bundle(model, args, tmp_path / "b", forms=["scan"], sizes=(2,))
    x = torch.randn(8, 6, 3).numpy()
    lengths = np.array([1, 2, 1, 2, 5, 3, 1, 1])
    request = Request({"x": x, "lengths": lengths})
    with Model(tmp_path / "b", limits=Limits(max_rows=3)) as served:
        output = served.infer(request).outputs["output"]
    assert output.shape == (8, 5, 3)
    np.testing.assert_allclose(output, expected(model, x, lengths), atol=1e-5)
    reason = "the sizes of this model's outputs depend on all rows"
    with (
        Model(tmp_path / "b", limits=Limits(max_rows=1)) as served,
        pytest.raises(InputError, match=reason),
    ):
        served.submit(request)


def test_rows_that_depend_on_each_other_are_not_split(tmp_path: Path) -> None:
    export_bundle(Centred(), (torch.randn(2, 6, 3),), tmp_path / "b", forms=["native"], sizes=(2,))
    with Model(tmp_path / "b", limits=Limits(max_rows=4)) as served:
        assert served.infer(Request({"x": draw(4)})).outputs["output"].shape == (4, 6, 5)
        with pytest.raises(InputError, match=r"5 rows; send at most 4 .* not known to be independ"):
            served.submit(Request({"x": draw(5)}))


def draw(rows: int) -> np.ndarray:
    return np.zeros((rows, 6, 3), np.float32)


def test_others_wait_for_a_piece_and_not_for_the_whole(padded: Path, runs: Runs) -> None:
    with Model(padded, threads=1, limits=Limits(max_rows=4)) as model:
        with runs.held(model):
            large = ask(model, tokens(40, 6))
            small = ask(model, tokens(3, 6))
            late = ask(model, tokens(2, 6))
            assert model.statistics().queued == 3
        wait([large, small, late], 30)
    assert runs.rows[:3] == [[4], [3], [2]]
    assert runs.rows[3:] == [[4]] * 9


def test_it_counts_once_until_its_last_piece_runs(padded: Path, runs: Runs) -> None:
    array = tokens(40, 6)
    # The lengths, which are left out, count too.
    limits = Limits(max_rows=4, max_queue=2, max_queue_bytes=array.nbytes + 40 * 8 + 100)
    with Model(padded, threads=1, limits=limits) as model:
        with runs.held(model):
            large = ask(model, array)
            with pytest.raises(BusyError, match="2240 bytes of inputs wait"):
                ask(model, tokens(2, 6))
            small = ask(model, tokens(1, 6))
            with pytest.raises(BusyError, match="2 requests wait"):
                ask(model, tokens(1, 1))
        wait([large, small], 30)
        assert ask(model, array).result(30)
        assert model._queue.input_bytes == 0


def test_a_piece_that_fails_is_the_failure_of_the_request(padded: Path, runs: Runs) -> None:
    array = tokens(40, 6) % 10
    array[4, 0] = runs.fails = 11
    with Model(padded, threads=1, limits=Limits(max_rows=4)) as model:
        with runs.held(model):
            large = ask(model, array)
            small = ask(model, tokens(1, 6) % 10)
        with pytest.raises(RunError, match="no memory"):
            large.result(30)
        assert small.result(30)
        statistics = model.statistics()
    assert runs.rows == [[4], [1], [4]]
    assert (statistics.successes, statistics.failures, statistics.queued) == (2, 1, 0)


def test_what_is_left_of_a_cancelled_request_is_not_run(padded: Path, runs: Runs) -> None:
    with Model(padded, threads=1, limits=Limits(max_rows=4)) as model:
        large = ask(model, tokens(4, 6))
        large.result(30)
        runs.gate.clear()
        runs.entered.clear()
        large = ask(model, tokens(12, 6))
        assert runs.entered.wait(30)
        assert large.cancel()
        runs.gate.set()
        assert not wait([large], 30).not_done
        assert ask(model, tokens(1, 6)).result(30)
        statistics = model.statistics()
    assert runs.rows == [[4], [4], [1]]
    assert statistics.failure_reasons == {"cancelled": 1}
    assert statistics.queued == 0


def test_a_deadline_ends_what_is_left(padded: Path, runs: Runs) -> None:
    now = [0.0]
    with Model(padded, threads=1, limits=Limits(max_rows=4), clock=lambda: now[0]) as model:
        runs.gate.clear()
        large = ask(model, tokens(12, 6), timeout=5.0)
        assert runs.entered.wait(30)
        now[0] = 6.0
        runs.gate.set()
        with pytest.raises(DeadlineError, match="its deadline passed"):
            large.result(30)
    assert runs.rows == [[4]]


def test_closing_answers_all_pieces(padded: Path, runs: Runs) -> None:
    with Model(padded, threads=1, limits=Limits(max_rows=4)) as model, runs.held(model):
        large = ask(model, tokens(40, 6))
    assert large.result(0).outputs["output"].shape == (40, 6, 3)
