"""`Model`: requests share runs, streams keep their states, and every client gets an answer or a reason."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from deploy_rnn.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    InputError,
    LoadError,
    RunError,
    StreamError,
    TooLargeError,
)
from deploy_rnn.export import export_onnx
from deploy_rnn.serving.engine import batch_engine as module_batch_engine
from deploy_rnn.serving.engine.feeds import Shapes
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling import model as module
from deploy_rnn.serving.scheduling import queue as module_queue
from deploy_rnn.serving.scheduling.core_slots import CoreSlots
from deploy_rnn.serving.scheduling.limits import Limits
from deploy_rnn.serving.scheduling.model import Model
from deploy_rnn.serving.scheduling.request import Request, Response


def tokens(rows: int, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, size=(rows, steps))


def ask(array: np.ndarray, **options: Any) -> Request:
    return Request({"tokens": array}, **options)


def expected(model: nn.Module, array: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        scores: np.ndarray = model(torch.from_numpy(array)).numpy()
        return scores


def leave_indices_to_the_run(model: Model) -> None:
    """As with a file of others, which does not say what are indices: a wrong one is then the fault of a run."""
    model._engine.signature = replace(model._engine.signature, index_ranges={})


class Held:
    """Holds the runs of a model back until told, so that requests queue up for certain.

    `batches` has the chunks of each segment of each run. `note` is called in the thread of each run.
    """

    note: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        real = module.execute

        def execute(engine: Any, batch: Any, get_all_cores: Any) -> Any:
            self.entered.set()
            assert self.gate.wait(30)
            self.note()
            self.batches.append([len(segment) for segment in batch])
            return real(engine, batch, get_all_cores)

        monkeypatch.setattr(module, "execute", execute)

    @contextmanager
    def __call__(self, model: Model, first: Request) -> Iterator["Future[Response]"]:
        """Run `first`; what is submitted inside the block waits."""
        self.gate.clear()
        self.entered.clear()
        future = model.submit(first)
        assert self.entered.wait(30)
        try:
            yield future
        finally:
            self.gate.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


@pytest.fixture
def open_model() -> Iterator[Callable[..., Model]]:
    opened = []

    def open_(path: Path, **options: Any) -> Model:
        opened.append(Model(path, threads=1, limits=Limits(**options)))
        return opened[-1]

    yield open_
    for model in opened:
        model.close()


def test_it_describes_itself(
    padded: Path, streaming: Path, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded, max_rows=7)
    assert (model.name, model.path, model.max_batch) == ("padded", padded, 7)
    assert [str(spec) for spec in (*model.inputs, *model.outputs)] == [
        "tokens: int64 [B, T]", "lengths: int64 [B]", "output: float32 [B, T, 3]",
    ]  # fmt: skip
    assert (model.lengths, model.optional, model.streaming) == ({"lengths"}, {"lengths"}, False)
    model = open_model(streaming)
    assert model.states == {"rnn.h0": "rnn.h_n", "rnn.c0": "rnn.c_n"}
    assert (model.optional, model.streaming) == ({"rnn.h0", "rnn.c0"}, True)
    assert Model(streaming, name="other").name == "other"


def test_a_model_that_fails_when_it_is_tried_is_not_loaded(
    padded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client has sent these inputs."""

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("the graph cannot take these inputs.")

    monkeypatch.setattr(module.BatchEngine, "warm_up", refuse)
    with pytest.raises(LoadError, match=r"padded' cannot be run: the graph cannot take these"):
        Model(padded, threads=1)


def test_a_single_file_streams(tmp_path: Path, open_model: Callable[..., Model]) -> None:
    """In the layout of its graph, one chunk at a time."""
    layer = nn.LSTM(3, 4).eval()
    export_onnx(layer, (torch.randn(5, 2, 3),), tmp_path / "lstm.onnx", form="scan", streaming=True)
    model = open_model(tmp_path / "lstm.onnx")
    assert model.streaming
    x = torch.randn(9, 2, 3)
    futures = []
    for number, chunk in enumerate(x.split(3)):
        futures.append(
            model.submit(Request({"input": chunk.numpy()}, sequence="s", start=number == 0))
        )
    outputs = [future.result(30).outputs["output"] for future in futures]
    np.testing.assert_allclose(np.concatenate(outputs), layer(x)[0].detach(), atol=1e-5)
    with pytest.raises(
        InputError, match=r"has `h0` of shape \[1, 2, 4\], this chunk needs \[1, 1, 4\]"
    ):
        model.infer(Request({"input": x[:, :1].numpy()}, sequence="s"))


def test_requests_of_like_length_share_a_run(
    padded: Path, tagger: nn.Module, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded)
    arrays = [tokens(rows, steps, steps) for rows, steps in [(1, 20), (2, 21), (1, 50), (3, 19)]]
    with held(model, ask(tokens(1, 5))):
        futures = [model.submit(ask(array)) for array in arrays]
        assert model.statistics().queued == 4
    for array, future in zip(arrays, futures, strict=True):
        np.testing.assert_allclose(
            future.result(30).outputs["output"], expected(tagger, array), atol=1e-5
        )
    assert [future.result().rows for future in futures] == [6, 6, 1, 6]
    statistics = model.statistics()
    assert (statistics.successes, statistics.failures, statistics.queued) == (5, 0, 0)
    assert (statistics.executions, statistics.rows) == (3, 8)
    assert (statistics.steps_real, statistics.steps_padded) == (5 + 20 + 42 + 57 + 50, 1 + 6)
    assert {rows: runs for rows, (runs, _) in statistics.batch_rows.items()} == {1: 2, 6: 1}
    assert statistics.compute_seconds == pytest.approx(
        sum(seconds for _, seconds in statistics.batch_rows.values())
    )
    assert statistics.queue_seconds > 0
    assert sum(statistics.request_durations.counts) == 5
    assert statistics.queue_durations.seconds == pytest.approx(statistics.queue_seconds)
    assert statistics.request_durations.seconds == pytest.approx(
        statistics.queue_durations.seconds + statistics.run_durations.seconds
    )
    assert abs(time.time() - (statistics.last_inference or 0)) < 60


def test_without_lengths_only_equal_steps_share_a_run(
    exact: Path, tagger: nn.Module, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(exact)
    arrays = [tokens(1, steps, seed) for seed, steps in enumerate([20, 21, 20])]
    with held(model, ask(tokens(1, 5))):
        futures = [model.submit(ask(array)) for array in arrays]
    for array, future in zip(arrays, futures, strict=True):
        np.testing.assert_allclose(
            future.result(30).outputs["output"], expected(tagger, array), atol=1e-5
        )
    assert [future.result().rows for future in futures] == [2, 1, 2]
    assert model.statistics().steps_padded == 0


def test_only_the_outputs_wanted(
    streaming: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming)
    with held(model, ask(tokens(1, 5))) as first:
        scores = model.submit(ask(tokens(1, 4), outputs=("output",)))
        state = model.submit(ask(tokens(1, 4), outputs=("rnn.c_n",)))
    assert set(first.result(30).outputs) == {"output", "rnn.h_n", "rnn.c_n"}
    assert set(scores.result(30).outputs) == {"output"}
    assert set(state.result(30).outputs) == {"rnn.c_n"}
    assert scores.result().rows == 2


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (ask(tokens(1, 101)), InputError, "the request has 101 steps; send at most 100 at once"),
        (
            ask(tokens(1, 4).astype(np.int32)),
            InputError,
            "`tokens` is int32, the graph takes int64",
        ),
        (
            ask(tokens(1, 4), outputs=("y",)),
            InputError,
            "there is no output `y`; the outputs are output",
        ),
        (ask(tokens(1, 4), outputs=()), InputError, "must be a list of names, or None for all"),
        (
            ask(tokens(1, 4), start=True),
            StreamError,
            "`start` or `end` is set without a `sequence`; name the stream",
        ),
        (
            ask(tokens(1, 4), sequence=5, start=True),
            StreamError,
            "model 'padded' has no states and holds no streams",
        ),
    ],
)
def test_what_it_cannot_take_is_refused_at_once(
    request_: Request, error: Any, message: str, padded: Path, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded, max_rows=8, max_steps=100)
    with pytest.raises(error, match=message):
        model.submit(request_)
    assert model.statistics().failures == 1


def test_shapes_are_checked_once_and_what_is_in_them_each_time(
    padded: Path, open_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(padded)
    checked: list[Any] = []
    of = Shapes.of

    def count(inputs: Any, signature: Any) -> Shapes:
        checked.append(inputs)
        return of(inputs, signature)

    monkeypatch.setattr(Shapes, "of", count)
    monkeypatch.setattr(module_batch_engine, "MAX_KNOWN", 3)
    wrong = tokens(1, 5)
    wrong[0, 2] = 20
    for outputs in (None, ("output",), ["output"]):
        lengths = model.infer(ask(tokens(1, 5), outputs=outputs)).outputs["output"]
        assert lengths.shape == (1, 5, 3)
        with pytest.raises(InputError, match=r"`tokens` has 20 at \[0, 2\]"):
            model.submit(ask(wrong, outputs=outputs))
    assert len(checked) == 1
    with pytest.raises(InputError, match="must be a list of names"):
        model.submit(ask(tokens(1, 5), outputs="output"))
    with pytest.raises(InputError, match="`tokens` is int32, the graph takes int64"):
        model.submit(ask(tokens(1, 5).astype(np.int32)))
    for steps in range(1, 8):
        model.infer(ask(tokens(1, steps)))
        assert len(model._engine._known_shapes) <= 3


def test_a_caller_may_change_its_inputs_once_they_are_accepted(
    padded: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded)
    array = tokens(1, 8)
    before = model.infer(ask(array.copy())).outputs["output"]
    with held(model, ask(tokens(1, 1))):
        future = model.submit(ask(array))
        array[:] = 0
    np.testing.assert_allclose(future.result(30).outputs["output"], before, atol=1e-6)


def test_a_fork_is_refused_and_closes_nothing(
    padded: Path, open_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(padded)
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: 1)
        with pytest.raises(RunError, match="this Model was opened in process"):
            model.submit(ask(tokens(1, 3)))
        model.close()
    model.infer(ask(tokens(1, 3)))


def test_a_request_of_too_many_rows_times_steps(
    padded: Path, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded, max_row_steps=40)
    assert model.infer(ask(tokens(2, 20))).outputs["output"].shape == (2, 20, 3)
    with pytest.raises(TooLargeError, match="3 rows of 14 steps, which is 42; send at most 40"):
        model.submit(ask(tokens(3, 14)))
    assert model.statistics().failure_reasons == {"too_large": 1}


def test_outputs_that_are_too_large(padded: Path, open_model: Callable[..., Model]) -> None:
    model = open_model(padded, max_output_bytes=2 * 5 * 3 * 4)
    assert model.infer(ask(tokens(2, 5))).outputs["output"].nbytes == 120
    with pytest.raises(TooLargeError, match="the outputs would have 144 bytes; the limit is 120"):
        model.submit(ask(tokens(2, 6)))


def test_requests_that_share_a_run_have_no_more_rows_times_steps_than_one(
    padded: Path, open_model: Callable[..., Model], held: Held
) -> None:
    model = open_model(padded, max_row_steps=40)
    held.gate.clear()
    first = model.submit(ask(tokens(1, 20)))
    held.entered.wait(30)
    futures = [model.submit(ask(tokens(1, 20, seed))) for seed in range(5)]
    held.gate.set()
    wait([first, *futures])
    assert [len(batch) for batch in held.batches] == [1, 2, 2, 1]


def test_the_fault_of_one_is_not_that_of_the_others(
    padded: Path, tagger: nn.Module, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded)
    leave_indices_to_the_run(model)
    with held(model, ask(tokens(1, 5))):
        good = model.submit(ask(tokens(1, 10)))
        bad = model.submit(ask(np.full((1, 10), 99)))
        also_good = model.submit(ask(tokens(1, 10, 1)))
    with pytest.raises(InputError, match=r"the graph cannot take these inputs: .*idx=99"):
        bad.result(30)
    np.testing.assert_allclose(
        good.result(30).outputs["output"], expected(tagger, tokens(1, 10)), atol=1e-5
    )
    np.testing.assert_allclose(
        also_good.result(30).outputs["output"], expected(tagger, tokens(1, 10, 1)), atol=1e-5
    )
    statistics = model.statistics()
    assert (statistics.successes, statistics.failures) == (3, 1)
    assert statistics.failure_reasons == {"bad_input": 1}


def test_a_full_queue_says_so_at_once(
    padded: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded, max_queue=2)
    with held(model, ask(tokens(1, 5))):
        futures = [model.submit(ask(tokens(1, 5))) for _ in range(2)]
        with pytest.raises(
            BusyError,
            match="2 requests wait for model 'padded', which is its limit; try again later",
        ):
            model.submit(ask(tokens(1, 5)))
    assert all(future.result(30) for future in futures)
    assert model.statistics().failure_reasons == {"busy": 1}


def test_a_request_that_nobody_waits_for_is_not_run(
    padded: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded)
    with held(model, ask(tokens(1, 5))):
        late = model.submit(ask(tokens(1, 5), timeout=0.0))
        cancelled = model.submit(ask(tokens(1, 5)))
        assert cancelled.cancel()
        kept = model.submit(ask(tokens(1, 5), timeout=1000.0))
    assert kept.result(30).rows == 1
    with pytest.raises(
        DeadlineError, match=r"the request waited for .* s, and its deadline passed"
    ):
        late.result(30)
    assert not wait([cancelled], 30).not_done
    statistics = model.statistics()
    assert (statistics.successes, statistics.failures, statistics.executions) == (2, 2, 2)
    assert statistics.failure_reasons == {"deadline": 1, "cancelled": 1}


def test_a_timeout_counts_from_when_the_request_is_accepted(padded: Path, held: Held) -> None:
    now = [1000.0]
    with Model(padded, threads=1, clock=lambda: now[0]) as model:
        with held(model, ask(tokens(1, 5))):
            late = model.submit(ask(tokens(1, 5), timeout=3.0))
            in_time = model.submit(ask(tokens(1, 5), timeout=5.0))
            now[0] += 4.0
        with pytest.raises(
            DeadlineError, match="the request waited for 4 s, and its deadline passed"
        ):
            late.result(30)
        assert in_time.result(30).queued == 4.0


def test_a_request_that_is_cancelled_while_a_batch_is_chosen(
    padded: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded)
    choose = model._queue._choose

    def cancel_and_choose(*arguments: Any) -> Any:
        cancelled.cancel()
        return choose(*arguments)

    with held(model, ask(tokens(1, 5))):
        cancelled = model.submit(ask(tokens(1, 5)))
        kept = model.submit(ask(tokens(1, 5)))
        model._queue._choose = cancel_and_choose  # type: ignore[method-assign]
    assert kept.result(30).rows == 1
    assert not wait([cancelled], 30).not_done
    assert model.infer(ask(tokens(1, 5))).rows == 1


def test_it_waits_for_more_rows_if_told_to(padded: Path, open_model: Callable[..., Model]) -> None:
    model = open_model(padded, max_wait=1000.0, max_rows=3)
    futures = [model.submit(ask(tokens(1, 5))) for _ in range(3)]
    assert [future.result(30).rows for future in futures] == [3, 3, 3]
    late = model.submit(ask(tokens(1, 5)))
    model.close()
    assert late.result(0).rows == 1


@pytest.mark.parametrize("timeout", [None, 0.0])
def test_closing_under_load_answers_or_refuses_everyone(
    timeout: float | None, padded: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded, max_rows=1)
    refusals: list[str] = []
    futures: list[Future[Response]] = []
    started = threading.Barrier(5)

    def hammer() -> None:
        started.wait()
        while True:
            try:
                futures.append(model.submit(ask(tokens(1, 3))))
            except BusyError:
                time.sleep(0)
            except ClosedError as error:
                refusals.append(str(error))
                return

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    with held(model, ask(tokens(1, 3))) as first:
        started.wait()
        if timeout is not None:
            model.close(timeout)
    model.close()
    for thread in threads:
        thread.join()
    assert set(refusals) == {"model 'padded' is being unloaded and takes no more requests."}
    assert first.result(30)
    assert not wait(futures, 30).not_done
    for future in futures:
        error = future.exception()
        assert error is None or (
            timeout is not None and "was unloaded before the request was run" in str(error)
        )
    answered = [future for future in futures if future.exception() is None]
    assert model.statistics().successes == 1 + len(answered)


def test_a_thread_that_dies_leaves_nobody_waiting(
    padded: Path, monkeypatch: pytest.MonkeyPatch, open_model: Callable[..., Model]
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    model = open_model(padded)
    monkeypatch.setattr(model._queue, "take", lambda now: 1 / 0)
    future = model.submit(ask(tokens(1, 3)))
    with pytest.raises(ClosedError, match="model 'padded' was unloaded before the request was run"):
        future.result(30)
    with pytest.raises(ClosedError, match="is being unloaded"):
        model.submit(ask(tokens(1, 3)))


def test_a_fault_beside_the_run_is_told_and_the_model_goes_on(
    padded: Path, monkeypatch: pytest.MonkeyPatch, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded)
    with monkeypatch.context() as patches:
        patches.setattr(model, "_answer", lambda *args: bytes(2**62))
        with pytest.raises(MemoryError):
            model.submit(ask(tokens(1, 3))).result(30)
    assert model.infer(ask(tokens(1, 3))).rows == 1


def test_the_inputs_that_wait_have_a_limit(
    padded: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded, max_queue_bytes=100)
    large = ask(tokens(2, 5))  # 80 bytes of tokens and 16 of lengths
    for _ in range(2):
        with held(model, ask(tokens(9, 9))):  # by itself, a request may have more
            waits = model.submit(large)
            with pytest.raises(
                BusyError, match="96 bytes of inputs wait for model 'padded', whose limit is 100"
            ):
                model.submit(ask(tokens(1, 1)))
        assert waits.result(30)


def test_many_threads_at_once(
    padded: Path, tagger: nn.Module, open_model: Callable[..., Model]
) -> None:
    model = open_model(padded)
    wrong: list[tuple[int, int]] = []

    def hammer(seed: int) -> None:
        for turn in range(15):
            array = tokens(1 + turn % 3, 1 + (7 * seed + turn) % 40, seed)
            scores = model.infer(ask(array)).outputs["output"]
            if not np.allclose(scores, expected(tagger, array), atol=1e-5):
                wrong.append((seed, turn))

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert model.statistics().successes == 120


class Counted:
    """Holds all runs back, and counts those that have begun; `all_cores`: which of them got all cores, if they ask."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.begun: list[Any] = []
        self.asks_for_all = True
        self.all_cores: list[bool] = []
        real = module.execute

        def execute(engine: Any, batch: Any, get_all_cores: Any) -> Any:
            self.all_cores.append(self.asks_for_all and get_all_cores())
            self.begun.append(batch)
            assert self.gate.wait(30)
            return real(engine, batch, lambda: False)

        monkeypatch.setattr(module, "execute", execute)

    def wait_for(self, runs: int) -> None:
        end = time.monotonic() + 30
        while len(self.begun) < runs:
            assert time.monotonic() < end
            time.sleep(0.001)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_as_many_runs_at_a_time_as_there_are_cores(
    padded: Path, tagger: nn.Module, counted: Counted
) -> None:
    with Model(padded, threads=2) as model:
        first = model.submit(ask(tokens(1, 9)))
        counted.wait_for(1)
        assert counted.all_cores == [True], "the only one has all cores"
        counted.gate.set()
        first.result(30)
        counted.gate.clear()
        model._cores = CoreSlots(2)
        monopoly = model._cores.taken()
        with monopoly:
            futures = [model.submit(ask(tokens(1, steps))) for steps in (9, 20, 31)]
            counted.wait_for(2)
        counted.wait_for(3)
        assert counted.all_cores[1:] == [False, False], "others wait or run"
        assert [len(batch) for batch in counted.begun[1:]] == [1, 1]
        counted.gate.set()
        for future, steps in zip(futures, (9, 20, 31), strict=True):
            scores = future.result(30).outputs["output"]
            np.testing.assert_allclose(scores, expected(tagger, tokens(1, steps)), atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has it")
@pytest.mark.parametrize(
    ("started_with", "expected_policy"), [("OTHER", "BATCH"), ("IDLE", "IDLE")]
)
def test_a_run_does_not_interrupt_others_when_its_thread_awakes(
    started_with: str, expected_policy: str, padded: Path, held: Held
) -> None:
    policies: list[int] = []

    def run() -> None:
        # The threads of the model begin as this one is.
        os.sched_setscheduler(0, getattr(os, f"SCHED_{started_with}"), os.sched_param(0))
        with Model(padded, threads=1) as model:
            model.infer(ask(tokens(1, 3)))

    held.note = lambda: policies.append(os.sched_getscheduler(0))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert policies == [getattr(os, f"SCHED_{expected_policy}")]


def test_models_share_the_cores(padded: Path, streaming: Path, counted: Counted) -> None:
    cores = CoreSlots(2)
    with (
        Model(padded, threads=2, cores=cores) as model,
        Model(streaming, threads=2, cores=cores) as other,
    ):
        futures = [model.submit(ask(tokens(1, steps))) for steps in (3, 30, 300)]
        counted.wait_for(1)
        futures.append(other.submit(ask(tokens(1, 3))))
        counted.gate.set()
        assert all(future.result(30) for future in futures)
    assert cores._free == 2


def test_chunks_of_a_stream_run_one_after_another_beside_those_of_others(
    streaming: Path, stream_model: nn.Module, counted: Counted
) -> None:
    with Model(streaming, threads=2, limits=Limits(max_rows=1)) as model:
        array = tokens(1, 12)
        counted.asks_for_all = False
        pieces = [send(model, 1, array[:, :4], start=True)]
        counted.wait_for(1)
        pieces.append(send(model, 1, array[:, 4:8]))
        other = send(model, 2, array, start=True)
        counted.wait_for(2)
        names = [batch[0][0].stream.name for batch in counted.begun]
        assert names == [1, 2], "the second chunk of stream 1 waits for its state"
        counted.gate.set()
        pieces.append(send(model, 1, array[:, 8:], end=True))
        np.testing.assert_allclose(whole(pieces), expected(stream_model, array), atol=1e-5)
        np.testing.assert_allclose(whole([other]), expected(stream_model, array), atol=1e-5)


def test_invalid_limits() -> None:
    with pytest.raises(ValueError, match=r"`max_rows` \(=0\) must be 1 or more"):
        Limits(max_rows=0)
    with pytest.raises(ValueError, match=r"`max_rows` \(=1\.5\) must be a whole number"):
        Limits(max_rows=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`max_wait` \(=-1\) must be 0 or more"):
        Limits(max_wait=-1)
    with pytest.raises(ValueError, match=r"`max_wait` \(=nan\) must be 0 or more"):
        Limits(max_wait=float("nan"))
    with pytest.raises(ValueError, match=r"`max_waste` \(=1.0\) must be below 1: it is a share"):
        Limits(max_waste=1.0)


# Streams


def send(model: Model, name: int | str, array: np.ndarray, **options: Any) -> "Future[Response]":
    return model.submit(ask(array, sequence=name, **options))


def chunks(
    model: Model, name: int | str, array: np.ndarray, sizes: list[int]
) -> list["Future[Response]"]:
    pieces = np.split(array, np.cumsum(sizes)[:-1], axis=1)
    last = len(pieces) - 1
    return [
        send(model, name, piece, start=index == 0, end=index == last)
        for index, piece in enumerate(pieces)
    ]


def whole(futures: list["Future[Response]"]) -> np.ndarray:
    return np.concatenate([future.result(30).outputs["output"] for future in futures], 1)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(1, 2),
)
def test_any_chunking_of_any_streams_is_the_whole(
    stream_model: nn.Module, shared: Model, cuts: list[list[int]], rows: int
) -> None:
    arrays = [tokens(rows, sum(sizes), seed) for seed, sizes in enumerate(cuts)]
    futures = [
        chunks(shared, name, array, sizes)
        for name, (array, sizes) in enumerate(zip(arrays, cuts, strict=True))
    ]
    for array, answers in zip(arrays, futures, strict=True):
        np.testing.assert_allclose(whole(answers), expected(stream_model, array), atol=1e-5)
    assert shared.statistics().streams == 0


@pytest.fixture(scope="module")
def shared(streaming: Path) -> Iterator[Model]:
    with Model(streaming, threads=1) as model:
        yield model


def test_chunks_that_queue_up_run_end_to_end_and_with_other_streams(
    streaming: Path, stream_model: nn.Module, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming)
    array = tokens(1, 30)
    with held(model, ask(tokens(1, 1))):
        three_chunks = chunks(model, 1, array, [10, 10, 10])
        two_chunks = chunks(model, "1", array, [15, 15])
        no_stream = [model.submit(ask(array))]
    for futures in (three_chunks, two_chunks, no_stream):
        np.testing.assert_allclose(whole(futures), expected(stream_model, array), atol=1e-5)
        assert {future.result().rows for future in futures} == {3}
    assert held.batches == [[1], [3, 2, 1]]


def test_a_chunk_whose_state_is_wanted_ends_a_segment(
    streaming: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming)
    array = tokens(1, 20)
    with held(model, ask(tokens(1, 1))):
        first = send(model, 1, array[:, :10], start=True, outputs=("rnn.h_n",))
        second = send(model, 1, array[:, 10:], outputs=("output", "rnn.h_n"))
    for future, steps in ((first, 10), (second, 20)):
        state = model.infer(ask(array[:, :steps])).outputs["rnn.h_n"]
        np.testing.assert_allclose(future.result(30).outputs["rnn.h_n"], state, atol=1e-5)
    assert send(model, 1, array).result(30).outputs.keys() == {"output"}


def test_the_state_that_a_caller_gets_is_its_own(shared: Model) -> None:
    array = tokens(1, 4)
    expected_next = []
    for name, change in ((1, 0.0), (2, 99.0)):
        outputs = send(shared, name, array, start=True, outputs=("rnn.h_n",)).result(30).outputs
        outputs["rnn.h_n"] += change
        expected_next.append(send(shared, name, array, end=True).result(30).outputs["output"])
    np.testing.assert_array_equal(*expected_next)


@pytest.mark.parametrize("name", [True, 1.5, [1], b"1"])
def test_the_name_of_a_stream_is_a_number_or_a_text(name: Any, shared: Model) -> None:
    with pytest.raises(InputError, match=r"`sequence` .* must be an integer or a string"):
        send(shared, name, tokens(1, 4), start=True)


def test_a_client_may_carry_the_states_itself(
    streaming: Path, stream_model: nn.Module, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming)
    array = tokens(2, 12)
    states: dict[str, np.ndarray] = {}
    scores = []
    for piece in np.split(array, [5, 6], axis=1):
        outputs = model.infer(Request({"tokens": piece, **states})).outputs
        states = {
            state_input: outputs[state_output] for state_input, state_output in model.states.items()
        }
        scores.append(outputs["output"])
    np.testing.assert_allclose(np.concatenate(scores, 1), expected(stream_model, array), atol=1e-5)
    with pytest.raises(
        StreamError,
        match=r"`rnn.h0` is given in a chunk of a stream, whose states the server holds; leave it out",
    ):
        model.submit(Request({"tokens": array, **states}, sequence=1, start=True))
    assert not model.holds(1)


def test_a_chunk_that_is_refused_leaves_its_stream_as_it_was(
    streaming: Path, stream_model: nn.Module, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming, max_queue=1, max_streams=1, stream_keep=1000.0)
    array = tokens(1, 20)
    first = send(model, 1, array[:, :10], start=True)
    first.result(30)
    with pytest.raises(InputError, match="`tokens` has shape"):
        send(model, 1, array[0])
    with pytest.raises(InputError, match="stream 1 has 1 rows, this chunk has 2"):
        send(model, 1, tokens(2, 5))
    with pytest.raises(BusyError, match="1 streams are live, which is the limit"):
        send(model, 2, array, start=True)
    with held(model, ask(tokens(1, 5))):
        waits = model.submit(ask(tokens(1, 5)))
        with pytest.raises(BusyError, match="1 requests wait"):
            send(model, 1, array[:, 10:])
    waits.result(30)
    np.testing.assert_allclose(
        whole([first, send(model, 1, array[:, 10:])]), expected(stream_model, array), atol=1e-5
    )
    with pytest.raises(StreamError, match="stream 2 is unknown"):
        send(model, 2, array)


def test_a_chunk_that_fails_ends_its_stream_and_no_other(
    streaming: Path, stream_model: nn.Module, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming)
    array = tokens(1, 12)
    bad = np.full((1, 6), 99)
    leave_indices_to_the_run(model)
    with held(model, ask(tokens(1, 5))):
        good = chunks(model, 1, array, [6, 6])
        before = send(model, 2, array[:, :6], start=True)
        fails = send(model, 2, bad)
        after = send(model, 2, array[:, 6:], end=True)
    np.testing.assert_allclose(whole(good), expected(stream_model, array), atol=1e-5)
    np.testing.assert_allclose(whole([before]), expected(stream_model, array[:, :6]), atol=1e-5)
    with pytest.raises(InputError, match="idx=99"):
        fails.result(30)
    with pytest.raises(
        StreamError, match=r"stream 2 was ended: a chunk of it failed .*idx=99.*; start it again"
    ):
        after.result(30)
    assert not model.holds(2)


def test_a_chunk_that_is_dropped_ends_its_stream(
    streaming: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming)
    array = tokens(1, 6)
    for name in (1, 2):
        send(model, name, array, start=True).result(30)
    with held(model, ask(tokens(1, 5))):
        send(model, 1, array).cancel()
        late = send(model, 2, array, timeout=0.0)
        after = [send(model, name, array) for name in (1, 2)]
    with pytest.raises(DeadlineError):
        late.result(30)
    with pytest.raises(
        StreamError, match="stream 1 was ended: a chunk of it was cancelled; start it again"
    ):
        after[0].result(30)
    with pytest.raises(
        StreamError,
        match=r"stream 2 was ended: the request waited for .*deadline passed.; start it again",
    ):
        after[1].result(30)
    with pytest.raises(
        StreamError, match="stream 1 was ended: a chunk of it was cancelled; start it again"
    ):
        send(model, 1, array)


def test_a_chunk_that_is_dropped_leaves_those_before_it(
    streaming: Path, stream_model: nn.Module, held: Held, open_model: Callable[..., Model]
) -> None:
    """They were accepted. Here another stream runs between them and the one that is dropped."""
    model = open_model(streaming, max_rows=1)
    array = tokens(1, 12)
    with held(model, ask(tokens(1, 5))):
        others = [send(model, 1, array, start=True), send(model, 2, array, start=True)]
        first = send(model, 3, array[:, :6], start=True)
        second = send(model, 3, array[:, 6:])
        send(model, 3, array).cancel()
        lost = send(model, 3, array)
    np.testing.assert_allclose(
        whole([first, second]), expected(stream_model, array), atol=1e-5, rtol=0
    )
    assert all(other.result(30) for other in others)
    with pytest.raises(StreamError, match="stream 3 was ended: a chunk of it was cancelled"):
        lost.result(30)


def test_a_busy_stream_does_not_keep_others_from_running(
    streaming: Path, held: Held, open_model: Callable[..., Model]
) -> None:
    """However many of its chunks wait; the threads that are free do not look for work in vain meanwhile."""
    array = tokens(1, 1)
    with Model(streaming, threads=2) as model:
        takes = []
        take = model._queue.take
        model._queue.take = lambda now: takes.append(now) or take(now)  # type: ignore[method-assign,func-returns-value]
        with held(model, ask(array, sequence=1, start=True)):
            for _ in range(module_queue.WINDOW):
                send(model, 1, array)
            # The second thread has taken this one: it waits at the gate.
            held.entered.clear()
            other = send(model, 2, array, start=True)
            assert held.entered.wait(30)
            assert len(takes) <= 3
        assert other.result(30)


def test_a_stream_ends_when_its_last_chunk_is_accepted(
    streaming: Path, stream_model: nn.Module, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming)
    array = tokens(1, 12)
    with held(model, ask(tokens(1, 5))):
        first = chunks(model, "s", array, [5, 7])
        with pytest.raises(
            StreamError, match="stream 's' has ended; start it again to use its id again"
        ):
            send(model, "s", array)
        again = chunks(model, "s", array[:, ::-1], [6, 6])
    np.testing.assert_allclose(whole(first), expected(stream_model, array), atol=1e-5)
    np.testing.assert_allclose(
        whole(again), expected(stream_model, array[:, ::-1].copy()), atol=1e-5
    )


def test_a_stream_begins_anew_while_a_chunk_of_it_waits(
    streaming: Path, stream_model: nn.Module, held: Held, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming)
    old, new = tokens(1, 12), tokens(2, 9, seed=1)
    first = send(model, 1, old[:, :4], start=True)
    first.result(30)
    with held(model, ask(tokens(1, 5))):
        waits = [send(model, 1, old[:, 4:7]), send(model, 1, old[:, 7:])]
        again = chunks(model, 1, new, [4, 5])
        both = send(model, 1, old, start=True, end=True)
    np.testing.assert_allclose(whole([first, *waits]), expected(stream_model, old), atol=1e-5)
    np.testing.assert_allclose(whole(again), expected(stream_model, new), atol=1e-5)
    np.testing.assert_allclose(whole([both]), expected(stream_model, old), atol=1e-5)
    assert model.statistics().streams == 0


def test_a_retired_model_goes_on_with_its_streams_only(
    streaming: Path, stream_model: nn.Module, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming)
    array = tokens(1, 12)
    first = send(model, 1, array[:, :5], start=True)
    model.retire()
    for request in (ask(array), ask(array, sequence=1, start=True), ask(array, sequence=2)):
        with pytest.raises(ClosedError):
            model.submit(request)
    rest = send(model, 1, array[:, 5:])
    assert model.end_streams("was ended: it is late") == [1]
    np.testing.assert_allclose(whole([first, rest]), expected(stream_model, array), atol=1e-5)
    with pytest.raises(ClosedError):
        send(model, 1, array)


def test_restarts_are_refused_of_streams_that_a_replaced_model_holds(streaming: Path) -> None:
    def make(path: Path, name: str) -> Model:
        return Model(path, name=name, threads=1, limits=limits)

    def chunk(**options: Any) -> None:
        request = ask(tokens(1, 2), sequence=7, **options)
        repository.submit("streaming", "", request).result(30)

    limits = Limits(refuse_restart=True)
    repository = Repository(streaming, make, limits)
    repository.load("streaming")
    chunk(start=True)
    repository.load("streaming")
    with pytest.raises(StreamError, match="stream 7 has already started"):
        chunk(start=True)
    chunk(end=True)
    chunk(start=True)
    repository.close()


def test_an_idle_stream_expires_by_the_clock(streaming: Path) -> None:
    now = [0.0]
    limits = Limits(stream_idle=60.0)
    with Model(streaming, threads=1, limits=limits, clock=lambda: now[0]) as model:
        send(model, "a", tokens(1, 3), start=True).result(30)
        now[0] = 59.0
        assert model.holds("a")
        now[0] = 60.0
        assert not model.holds("a")
        with pytest.raises(
            StreamError, match="stream 'a' expired after 60 s without a chunk; start it again"
        ):
            send(model, "a", tokens(1, 3))


def test_limits_may_be_infinite(streaming: Path, open_model: Callable[..., Model]) -> None:
    model = open_model(streaming, stream_idle=float("inf"), max_wait=float("inf"), max_rows=1)
    send(model, "a", tokens(1, 3), start=True).result(30)
    assert send(model, "a", tokens(1, 3)).result(30)


def test_streams_that_are_opened_and_abandoned(
    streaming: Path, open_model: Callable[..., Model]
) -> None:
    model = open_model(streaming, max_streams=64, stream_keep=0.0, max_queue=4096)
    array = tokens(1, 1)
    for name in range(10_000):
        while True:
            try:
                send(model, name, array, start=True)
                break
            except BusyError:  # every stream of the table waits for its run
                time.sleep(1e-4)
    model.close()
    statistics = model.statistics()
    assert (statistics.streams, statistics.queued, statistics.successes) == (64, 0, 10_000)
