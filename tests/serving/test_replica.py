"""A `ServedModel` need not live in the server's process: here a repository serves one that runs in another."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_rnn.errors import DeadlineError, InputError, StreamError
from deploy_rnn.serving import Model, Repository, Request, Response, Statistics, make_app

ATTRIBUTES = (
    "name",
    "inputs",
    "outputs",
    "optional",
    "streaming",
    "states",
    "max_batch",
    "precision",
)

models: list[Model] = []
"""The model of the other process."""


def open_model(path: Path, name: str) -> None:
    models.append(Model(path, name=name, threads=1))


def describe() -> dict[str, Any]:
    return {attribute: getattr(models[0], attribute) for attribute in ATTRIBUTES}


def call(method: str, *args: Any) -> Any:
    return getattr(models[0], method)(*args)


class Replica:
    """A `ServedModel` that hands every call to a `Model` in another process."""

    def __init__(self, path: Path, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(
            1, context, initializer=open_model, initargs=(path, name)
        )
        vars(self).update(self._process.submit(describe).result())

    def submit(self, request: Request) -> "Future[Response]":
        return self._process.submit(call, "infer", request)

    def holds(self, sequence: int | str) -> bool:
        answer: bool = self._process.submit(call, "holds", sequence).result()
        return answer

    def statistics(self) -> Statistics:
        answer: Statistics = self._process.submit(call, "statistics").result()
        return answer

    def retire(self) -> None:
        self._process.submit(call, "retire").result()

    def end_streams(self, reason: str, sequence: int | str | None = None) -> list[int | str]:
        ended: list[int | str] = self._process.submit(
            call, "end_streams", reason, sequence
        ).result()
        return ended

    def ended_streams(self) -> dict[int | str, str]:
        ended: dict[int | str, str] = self._process.submit(call, "ended_streams").result()
        return ended

    def close(self, timeout: float | None = None) -> None:
        self._process.submit(call, "close", timeout).result()
        self._process.shutdown()


@pytest.fixture(scope="module")
def repository(real_bundles: Path) -> Iterator[Repository]:
    repository = Repository(real_bundles / "stream", Replica)
    repository.load_all()
    yield repository
    repository.close(10)


def test_chunks_of_a_stream(repository: Repository, real_models: dict[str, nn.Module]) -> None:
    array = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    outputs = []
    for chunk, start, end in ((array[:, :2], True, False), (array[:, 2:], False, True)):
        request = Request({"input": chunk}, sequence="s", start=start, end=end, timeout=60.0)
        outputs.append(repository.submit("stream", "", request).result(60).outputs["output"])
    expected = real_models["stream"](torch.from_numpy(array))[0].detach().numpy()
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, atol=1e-5)
    with pytest.raises(StreamError, match="stream 's' has ended"):
        repository.submit("stream", "", Request({"input": array}, sequence="s")).result(60)


def test_errors_come_back(repository: Repository) -> None:
    with pytest.raises(InputError, match=r"`input` has shape \[2, 3\]"):
        repository.submit("stream", "", Request({"input": np.ones((2, 3), np.float32)})).result(60)
    with pytest.raises(DeadlineError, match="its deadline passed"):
        repository.submit(
            "stream", "", Request({"input": np.ones((1, 2, 3), np.float32)}, timeout=0.0)
        ).result(60)


def test_it_is_served(repository: Repository, make_client: Any) -> None:
    client = make_client(make_app(repository))
    assert client.get("/v2/models/stream/config").json()["max_batch_size"] == 32
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 1, 3], "data": [1, 2, 3]}
    answer = client.post("/v2/models/stream/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200
    assert 'deploy_rnn_rows_total{model="stream"} ' in client.get("/metrics").text
