"""Models are loaded, replaced and unloaded while they answer, and nothing that was accepted is dropped."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_rnn.errors import BundleError, ClosedError, LoadError, StreamError, UnknownModelError
from deploy_rnn.serving import Repository, Request
from deploy_rnn.serving import repository as module


def ask(
    repository: Repository, *, sequence: int | None = None, start: bool = False, end: bool = False
) -> float:
    request = Request({"x": np.ones((1, 1), np.float32)}, ("y",), sequence, start, end)
    response = repository.submit("sum", "", request).result(60)
    return float(response.outputs["y"][0, 0])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_POLL_SECONDS", 0.005)


def test_the_bundles_of_a_folder(repository: Repository, folder: Path, new_bundle: Any) -> None:
    new_bundle(folder / "later")
    (folder / "no-bundle").mkdir()
    states = {row["name"]: row["state"] for row in repository.index()}
    assert states == {"later": "UNAVAILABLE", "sum": "READY"}
    with pytest.raises(UnknownModelError, match="unknown model: `later` is not loaded"):
        repository.model("later")
    with pytest.raises(
        UnknownModelError, match="unknown model: `x` is not found; the models are later, sum"
    ):
        repository.model("x")
    repository.load("later")
    assert [model.name for model in repository.models()] == ["later", "sum"]
    with pytest.raises(UnknownModelError, match="`sum` has no version '2'; it has '1'"):
        repository.model("sum", "2")
    with pytest.raises(
        BundleError,
        match=r"there is no bundle at '.*no-bundle'; it must be a bundle, an \.onnx file",
    ):
        Repository(folder / "no-bundle", lambda *_: pytest.fail("nothing to make"))


def test_a_replaced_model_answers_what_it_accepted(
    repository: Repository, folder: Path, new_bundle: Any
) -> None:
    old: Any = repository.model("sum")
    old.gate.clear()
    waiting = repository.submit("sum", "", Request({"x": np.ones((1, 1), np.float32)}))
    new_bundle(folder / "sum", "10")
    repository.load("sum")
    assert ask(repository) == 10
    assert not waiting.done()
    old.gate.set()
    assert waiting.result(60).outputs["y"] == 1
    wait_until(lambda: old.closed)


def test_streams_end_on_the_model_that_began_them(
    repository: Repository, folder: Path, new_bundle: Any
) -> None:
    old: Any = repository.model("sum")
    assert ask(repository, sequence=7, start=True) == 1
    new_bundle(folder / "sum", "10")
    repository.load("sum")
    assert ask(repository, sequence=8, start=True) == 10
    assert ask(repository, sequence=7) == 2
    assert not old.closed
    assert ask(repository, sequence=7, end=True) == 3
    wait_until(lambda: old.closed)
    assert ask(repository, sequence=8) == 20
    with pytest.raises(StreamError):
        ask(repository, sequence=7)


def test_a_stream_has_ended_once_its_last_chunk_is_accepted(repository: Repository) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    x = np.ones((1, 1), np.float32)
    last = repository.submit("sum", "", Request({"x": x}, sequence="s", start=True, end=True))
    with pytest.raises(StreamError, match="there is no stream 's'"):
        repository.submit("sum", "", Request({"x": x}, sequence="s"))
    model.gate.set()
    assert last.result(60).outputs["y"] == 1


def test_a_stream_that_starts_again_is_the_new_model_s(
    repository: Repository, folder: Path, new_bundle: Any
) -> None:
    ask(repository, sequence=7, start=True)
    new_bundle(folder / "sum", "10")
    repository.load("sum")
    assert ask(repository, sequence=7, start=True) == 10
    assert ask(repository, sequence=7) == 20


def test_a_bad_bundle_leaves_the_old_one(
    repository: Repository, folder: Path, new_bundle: Any
) -> None:
    new_bundle(folder / "sum", "broken")
    with pytest.raises(LoadError, match="'broken' is not a scale"):
        repository.load("sum")
    assert ask(repository) == 1
    assert repository.ready()
    reason = "'broken' is not a scale."
    assert repository.index() == [
        {"name": "sum", "version": "1", "state": "READY", "reason": reason}
    ]


def test_nothing_is_dropped_while_models_are_replaced(
    repository: Repository, folder: Path, new_bundle: Any
) -> None:
    answers: list[float] = []
    errors: list[Exception] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                answers.append(ask(repository))
            except Exception as error:
                errors.append(error)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    for scale in range(2, 22):
        new_bundle(folder / "sum", str(scale))
        repository.load("sum")
        wait_until(lambda scale=scale: scale in answers[-50:])
    over.set()
    for thread in clients:
        thread.join()
    assert not errors
    assert set(answers) <= {float(scale) for scale in range(1, 22)}


def test_unload_and_close(repository: Repository) -> None:
    model: Any = repository.model("sum")
    ask(repository, sequence=1, start=True)
    repository.unload("sum")
    wait_until(lambda: model.closed)
    with pytest.raises(
        UnknownModelError, match=r"unknown model: `sum` is not loaded \(unloaded\)\."
    ):
        ask(repository)
    repository.load("sum")
    assert ask(repository) == 1
    repository.close()
    assert not repository.ready()
    with pytest.raises(ClosedError):
        ask(repository)


def test_a_model_loaded_while_the_server_stops_is_closed(folder: Path, sum_model: Any) -> None:
    models: list[Any] = []

    def make(path: Path, name: str) -> Any:
        repository.drain()
        models.append(sum_model(path, name))
        return models[-1]

    repository = Repository(folder, make)
    repository.load("sum")
    assert models[0].closed
