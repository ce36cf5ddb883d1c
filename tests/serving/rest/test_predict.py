"""Version 1 of KServe's protocol: rows in, predictions out."""

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_rnn.errors import BusyError, InputError
from deploy_rnn.runtime import TensorSpec
from deploy_rnn.serving.protocol import inference
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest import predict
from deploy_rnn.serving.rest.app import make_app
from deploy_rnn.serving.scheduling.request import Request, Response
from deploy_rnn.serving.settings import Settings

PATH = "/v1/models/sum:predict"


def ask(client: Any, *instances: Any, **options: Any) -> Any:
    return client.post(PATH, json={"instances": instances}, **options)


def error(answer: Any) -> str:
    message: str = answer.json()["error"]
    return message


def test_each_instance_is_a_row_of_its_own_length(client: Any) -> None:
    """An object, or the value alone, if one input is enough; numbers may be whole."""
    answer = ask(client, [1, 2, 3], {"x": [0.5]}, {"total": [10.0], "x": [1.0, 1.0]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "predictions": [
            {"y": [1, 3, 6], "total_n": [6]},
            {"y": [0.5], "total_n": [0.5]},
            {"y": [11, 12], "total_n": [12]},
        ]
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, 'the request has no `instances`; must be {"instances": [...]}.'),
        ({"instances": []}, "`instances` (=[]) must be a list of at least one instance."),
        ({"instances": {"x": 1}}, '`instances` (={"x": 1}) must be a list of at least one instance.'),
        ({"instances": [[1], 2.5]}, "instances[1]: `x` has shape []; must be [T], with no size 0."),
        ({"instances": [[]]}, "instances[0]: `x` has shape [0]; must be [T], with no size 0."),
        ({"instances": [[[1, 2]]]}, "instances[0]: `x` has shape [1, 2]; must be [T], with no size 0."),
        ({"instances": [{"x": [1], "total": [1, 2]}]}, "instances[0]: `total` has shape [2]; must be [1]."),
        ({"instances": [[[1], []]]}, "instances[0]: `x` has data that is not a tensor: lists of different lengths."),
        ({"instances": [["a"]]}, 'instances[0]: `x` contains values that are not FP32, such as "a".'),
        ({"instances": ["a"]}, 'instances[0]: `x` contains values that are not FP32, such as "a".'),
        ({"instances": [None]}, "instances[0]: `x` contains values that are not FP32, such as null."),
        ({"instances": [[1e39]]}, "instances[0]: `x` contains values out of range for FP32."),
        ({"instances": [{"x": [1], "z": 1}]}, 'instances[0]: there is no input `z`; the inputs are x, total.'),
        ({"instances": [[1], {"total": [1]}]}, "instances[1]: give `x`: float32 [B, T]."),
    ],
)  # fmt: skip
def test_what_is_wrong(client: Any, body: Any, message: str) -> None:
    answer = client.post(PATH, json=body)
    assert (answer.status_code, error(answer)) == (400, message)


def test_a_name_that_no_answer_can_carry_is_escaped_in_the_message(client: Any) -> None:
    answer = client.post(PATH, content=rb'{"instances": [{"x": [1], "y\ud800": 1}]}')
    message = r"instances[0]: there is no input `y\ud800`; the inputs are x, total."
    assert (answer.status_code, error(answer)) == (400, message)


def test_a_value_alone_is_not_enough_for_two_inputs(sum_model: Any, folder: Path) -> None:
    class TwoInputs(sum_model):  # type: ignore[misc]
        optional: frozenset[str] = frozenset()

    message = r"it is \[1\.0\]; must be an object with the inputs x, total\."
    with pytest.raises(InputError, match=rf"instances\[0\]: {message}"):
        predict.read(b'{"instances": [[1.0]]}', TwoInputs(folder / "sum", "sum"), Settings())


def test_if_one_is_refused_the_others_are_given_up(
    client: Any, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = repository.model("sum", "")
    futures: list[Future[Response]] = []

    def submit(request: Request) -> "Future[Response]":
        if len(futures) == 2:
            raise BusyError("the queue is full.")
        futures.append(Future())
        return futures[-1]

    monkeypatch.setattr(model, "submit", submit)
    answer = ask(client, [1], [2], [3])
    assert (answer.status_code, error(answer)) == (503, "the queue is full.")
    assert [future.cancelled() for future in futures] == [True, True]


def test_more_instances_than_the_queue_takes(
    client: Any, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "MAX_TOGETHER", 2)
    model: Any = repository.model("sum", "")
    model.max_queue = 2
    answer = ask(client, *[[number] for number in range(7)])
    assert [prediction["y"] for prediction in answer.json()["predictions"]] == [
        [number] for number in range(7)
    ]


def test_too_much(repository: Repository, make_client: Any) -> None:
    client = make_client(make_app(repository, Settings(max_json_bytes=400)))
    answer = ask(client, [1.0] * 200)
    assert answer.status_code == 413
    assert "400 bytes" in error(answer)
    answer = ask(client, [1] * 25)
    assert answer.status_code == 413
    assert error(answer).startswith("an answer of 26 numbers takes more")


def test_too_many_instances(client: Any) -> None:
    answer = ask(client, *[1] * 4097)
    assert answer.status_code == 413
    assert error(answer) == "`instances` has 4097; send at most 4096 at once."


def test_token(repository: Repository, make_client: Any) -> None:
    client = make_client(make_app(repository, Settings(token="secret")))
    for answer in (ask(client, [1]), client.get("/v1/models"), client.get("/v1/models/sum")):
        assert answer.status_code == 401
    headers = {"Authorization": "Bearer secret"}
    assert ask(client, [1], headers=headers).status_code == 200


def test_compression(client: Any) -> None:
    body = gzip.compress(json.dumps({"instances": [[1.5] * 300]}).encode())
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    answer = client.post(PATH, content=body, headers=headers)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(answer.json()["predictions"][0]["y"]) == 300


def test_models(client: Any) -> None:
    assert client.get("/v1/models").json() == {"models": ["sum"]}
    assert client.get("/v1/models/sum").json() == {"name": "sum", "ready": True}
    for answer in (client.get("/v1/models/no"), client.post("/v1/models/no:predict", json={})):
        assert answer.status_code == 404
        assert error(answer) == "unknown model: `no` is not found; the models are sum."
    assert client.get(PATH).status_code == 404  # a model of this name
    assert client.post("/v1/models/sum", json={}).status_code == 405


class Described:
    """A model with these outputs, as far as `predict.write` looks."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.outputs = (TensorSpec("y", "float32", ("B", 2)),)


def written(max_batch: int, **outputs: np.ndarray) -> Any:
    model: Any = Described(max_batch)
    body, _ = predict.write([Response(outputs, 0.0, 0.0, 1)], model, Settings())
    return json.loads(body)["predictions"]


def test_one_output_is_the_prediction_itself() -> None:
    assert written(8, y=np.array([[0.1, 2]], np.float32)) == [[0.1, 2.0]]
    assert written(8, y=np.array([3], np.int64)) == [3]
    assert written(8, y=np.array([0.1], np.float32)) == [0.1]
    assert written(8, y=np.array([0.1], np.float16)) == [0.1]
    assert written(8, y=np.array([[0.1, 2]], np.float16)) == [[0.1, 2.0]]
    assert written(0, y=np.array([[0.1], [2]], np.float32)) == [[[0.1], [2.0]]]


def test_a_number_that_json_cannot_represent() -> None:
    with pytest.raises(InputError, match="output `y` contains NaN or infinity, which JSON cannot"):
        written(8, y=np.array([[np.nan]], np.float32))


@pytest.fixture
def closed(repository: Repository) -> Iterator[Any]:
    model: Any = repository.model("sum", "")
    model.gate.clear()
    yield model
    model.gate.set()


def test_deadline(repository: Repository, make_client: Any, closed: Any) -> None:
    client = make_client(make_app(repository, Settings(request_seconds=0.05)))
    assert ask(client, [1]).status_code == 504
