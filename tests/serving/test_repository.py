"""Models are loaded, replaced and unloaded while they answer, and nothing that was accepted is dropped."""

import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from deploy_rnn.errors import (
    BundleError,
    BusyError,
    ClosedError,
    LoadError,
    StreamError,
    UnknownModelError,
)
from deploy_rnn.serving import Limits, Repository, Request
from deploy_rnn.serving import repository as module
from deploy_rnn.serving.metrics import Metrics


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


def test_a_name_that_no_path_of_http_can_carry(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Manifest, "read", lambda _: SimpleNamespace(name="a/b"))
    message = "has the name 'a/b' in its manifest; must be one without '/'"
    with pytest.raises(BundleError, match=message):
        Repository(folder / "sum", lambda *_: pytest.fail("nothing to make"))


def test_a_folder_whose_name_is_not_utf_8(
    repository: Repository, folder: Path, new_bundle: Any
) -> None:
    """Its name can be sent, and loads it."""
    new_bundle(Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff")), "3")
    names = [row["name"] for row in repository.index()]
    assert names == ["bad\\xff", "sum"]
    repository.load("bad\\xff")
    with pytest.raises(UnknownModelError) as raised:
        repository.model("x")
    str(raised.value).encode("utf-8")


def test_what_may_not_be_looked_at_is_not_a_bundle(
    repository: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many disks have a folder `lost+found` that only root may enter."""
    (folder / "lost+found").mkdir()
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if "lost+found" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert [row["name"] for row in repository.index()] == ["sum"]


def test_a_bundle_that_is_gone(repository: Repository, folder: Path) -> None:
    shutil.rmtree(folder / "sum")
    with pytest.raises(BundleError, match="the bundle of `sum` is not there any more"):
        repository.load("sum")
    shutil.rmtree(folder)
    (row,) = repository.index()
    assert (row["state"], row["reason"]) == ("READY", "the bundle of `sum` is not there any more.")
    assert ask(repository) == 1


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


def test_a_stop_leaves_the_streams_of_replaced_models_until_the_end(repository: Repository) -> None:
    old: Any = repository.model("sum")
    ask(repository, sequence=7, start=True)
    repository.load("sum")
    repository.drain()
    time.sleep(10 * module.STREAM_POLL_SECONDS)
    assert ask(repository, sequence=7) == 2
    repository.close()
    assert old.closed


def test_nothing_holds_a_model_that_was_replaced(repository: Repository) -> None:
    old = weakref.ref(repository.model("sum"))
    repository.load("sum")
    wait_until(lambda: old() is None)


def test_a_model_loaded_while_the_server_stops_is_closed(folder: Path, sum_model: Any) -> None:
    models: list[Any] = []

    def make(path: Path, name: str) -> Any:
        repository.drain()
        models.append(sum_model(path, name))
        return models[-1]

    repository = Repository(folder, make)
    with pytest.raises(ClosedError, match="the server stopped before the model was loaded"):
        repository.load("sum")
    wait_until(lambda: bool(models) and models[0].closed)


class Gated:
    """Makes models when `gate` is open."""

    def __init__(self, sum_model: Any) -> None:
        self._sum_model = sum_model
        self.gate = threading.Event()
        self.gate.set()
        self.made: list[Any] = []

    def __call__(self, path: Path, name: str) -> Any:
        assert self.gate.wait(60)
        self.made.append(self._sum_model(path, name))
        return self.made[-1]


def state(repository: Repository) -> tuple[str, str]:
    (row,) = repository.index()
    return row["state"], row["reason"]


def test_a_model_that_is_being_loaded(folder: Path, sum_model: Any, new_bundle: Any) -> None:
    make = Gated(sum_model)
    repository = Repository(folder, make)
    make.gate.clear()
    load = repository.start_load("sum")
    assert state(repository) == ("LOADING", "")
    with pytest.raises(BusyError, match="`sum` is being loaded; try again later"):
        ask(repository)
    make.gate.set()
    load.result(60)
    assert ask(repository) == 1
    make.gate.clear()
    new_bundle(folder / "sum", "10")
    load = repository.start_load("sum")
    assert state(repository) == ("READY", "")
    assert ask(repository) == 1
    make.gate.set()
    load.result(60)
    assert ask(repository) == 10


def test_unloaded_while_it_is_loaded_and_loaded_while_it_is_unloaded(
    folder: Path, sum_model: Any
) -> None:
    make = Gated(sum_model)
    repository = Repository(folder, make)
    repository.load("sum")
    old = make.made[0]
    old.gate.clear()
    waiting = repository.submit("sum", "", Request({"x": np.ones((1, 1), np.float32)}))
    make.gate.clear()
    load = repository.start_load("sum")
    repository.unload("sum")
    with pytest.raises(UnknownModelError, match="`sum` was unloaded before it was loaded"):
        load.result(0)
    # The load that was given up has not ended.
    again = repository.start_load("sum")
    assert state(repository) == ("LOADING", "")
    make.gate.set()
    again.result(60)
    assert state(repository) == ("READY", "")
    assert ask(repository) == 1
    _, given_up, current = make.made
    wait_until(lambda: given_up.closed)
    assert repository.model("sum") is current
    old.gate.set()
    assert waiting.result(60).outputs["y"] == 1
    wait_until(lambda: not repository.replaced()["sum"])


def test_an_unload_ends_the_streams_of_replaced_models_too(
    repository: Repository, folder: Path
) -> None:
    old: Any = repository.model("sum")
    ask(repository, sequence=7, start=True)
    repository.load("sum")
    ask(repository, sequence=8, start=True)
    assert repository.replaced()["sum"] == [old]
    metrics = Metrics(repository).text().decode().splitlines()
    assert 'deploy_rnn_streams{model="sum"} 2.0' in metrics
    assert 'deploy_rnn_replaced_models{model="sum"} 1.0' in metrics
    repository.unload("sum")
    with pytest.raises(UnknownModelError, match=r"`sum` is not loaded \(unloaded\)"):
        ask(repository, sequence=7)
    repository.load("sum")
    for sequence in (7, 8):
        with pytest.raises(
            StreamError,
            match=f"stream {sequence} was ended: its model was unloaded; start it again",
        ):
            ask(repository, sequence=sequence)
    wait_until(lambda: old.closed)
    assert ask(repository, sequence=7, start=True) == 1
    assert ask(repository, sequence=7) == 2


def test_a_stream_that_expires_on_a_replaced_model_says_so(repository: Repository) -> None:
    old: Any = repository.model("sum")
    for sequence in (7, 8):
        ask(repository, sequence=sequence, start=True)
    repository.load("sum")
    ask(repository, sequence=8, start=True, end=True)
    old.expire(7)
    wait_until(lambda: not repository.replaced()["sum"])
    with pytest.raises(StreamError, match="stream 7 expired after 1 s without a chunk"):
        ask(repository, sequence=7)
    with pytest.raises(StreamError, match="there is no stream 8"):
        ask(repository, sequence=8)


def test_few_replaced_models_are_kept_for_their_streams(folder: Path, sum_model: Any) -> None:
    repository = Repository(folder, sum_model, Limits(max_replaced=2))
    models: list[Any] = []
    for sequence in range(4):
        repository.load("sum")
        models.append(repository.model("sum"))
        ask(repository, sequence=sequence, start=True)
    wait_until(lambda: models[0].closed)
    assert [model.closed for model in models] == [True, False, False, False]
    with pytest.raises(
        StreamError,
        match="stream 0 was ended: its model was replaced, and of replaced models only the latest 2 are kept",
    ):
        ask(repository, sequence=0)
    assert [ask(repository, sequence=sequence, end=True) for sequence in (1, 2, 3)] == [2, 2, 2]
    wait_until(lambda: not repository.replaced()["sum"])
    repository.close()


def test_a_stream_that_starts_again_is_not_kept_by_the_model_before(
    repository: Repository,
) -> None:
    old: Any = repository.model("sum")
    ask(repository, sequence=7, start=True)
    repository.load("sum")
    ask(repository, sequence=7, start=True)
    wait_until(lambda: old.closed)


def test_a_model_that_is_replaced_while_a_stream_starts(repository: Repository) -> None:
    """The stream would begin on a model that is about to be closed: it is sent to the next one."""
    old: Any = repository.model("sum")
    submit = old.submit

    def submit_late(request: Request) -> Any:
        vars(old).pop("submit")
        repository.load("sum")
        wait_until(lambda: old.closed)
        return submit(request)

    old.submit = submit_late
    assert ask(repository, sequence=7, start=True) == 1
    assert ask(repository, sequence=7) == 2


def test_a_load_that_hangs_keeps_neither_clients_nor_the_stop_waiting(
    folder: Path, sum_model: Any, run_server: Any, new_bundle: Any
) -> None:
    make = Gated(sum_model)
    repository = Repository(folder, make)
    repository.load_all()
    new_bundle(folder / "other")
    make.gate.clear()
    answers: list[int] = []
    try:
        with run_server(repository) as server:
            url = f"http://{server.http_address}"

            def load(name: str) -> None:
                answer = httpx.post(f"{url}/v2/repository/models/{name}/load", timeout=60)
                answers.append(answer.status_code)

            threads = [
                threading.Thread(target=load, args=(name,)) for name in ("sum", "other") * 20
            ]
            for thread in threads:
                thread.start()
            wait_until(lambda: all(name in repository._loads for name in ("sum", "other")))
            # More than is decoded on the event loop itself.
            x = [1.0] * 50_000
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 50_000], "data": x}]}
            answer = httpx.post(f"{url}/v2/models/sum/infer", json=body, timeout=60)
            assert answer.status_code == 200
            assert not answers
            # Nobody comes too late to be answered.
            wait_until(lambda: len(server._http.server_state.tasks) == len(threads))
        for thread in threads:
            thread.join(60)
    finally:
        make.gate.set()
    assert answers == [503] * 40


def test_all_models_share_the_time_of_a_close(
    tmp_path: Path, new_bundle: Any, sum_model: Any
) -> None:
    for number in range(20):
        new_bundle(tmp_path / f"sum{number}")
    repository = Repository(tmp_path, sum_model)
    repository.load_all()
    models: list[Any] = list(repository.models())
    for model in models:
        model.gate.clear()
        repository.submit(model.name, "", Request({"x": np.ones((1, 1), np.float32)}))
    started = time.monotonic()
    repository.close(0.3)
    assert 0.3 <= time.monotonic() - started < 3
    for model in models:
        model.gate.set()
