"""Messages that say the same are described once; their ids, bytes and deadlines are their own."""

from typing import Any

import numpy as np
import pytest

from deploy_rnn.errors import InputError
from deploy_rnn.serving.grpc import tensors
from deploy_rnn.serving.grpc.messages import CLASSES
from deploy_rnn.serving.grpc.tensors import Reader
from deploy_rnn.serving.settings import Settings


def message(row: list[int], request_id: str = "", timeout: int = 0) -> Any:
    """A ModelInferRequest of one row, in raw contents."""
    request = CLASSES["ModelInferRequest"](model_name="m", id=request_id)
    request.inputs.add(name="tokens", datatype="INT64", shape=[1, len(row)])
    request.raw_input_contents.append(np.array(row).tobytes())
    if timeout:
        request.parameters["timeout"].int64_param = timeout
    return request


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the inputs that were described, in order."""
    names: list[str] = []
    describe_input = tensors._input

    def note(name: str, *args: Any, **options: Any) -> Any:
        names.append(name)
        return describe_input(name, *args, **options)

    monkeypatch.setattr(tensors, "_input", note)
    return names


def test_a_message_that_is_like_another_is_not_described_again(described: list[str]) -> None:
    reader = Reader(Settings())
    first = reader.read(message([1, 2], "a"), 5.0)
    second = reader.read(message([3, 4], "b"), 2.0)
    assert described == ["tokens"]
    assert (first.id, second.id) == ("a", "b")
    np.testing.assert_array_equal(first.request.inputs["tokens"], [[1, 2]])
    np.testing.assert_array_equal(second.request.inputs["tokens"], [[3, 4]])
    assert (first.request.timeout, second.request.timeout) == (5.0, 2.0)


def test_other_shapes_and_parameters_are_described(described: list[str]) -> None:
    reader = Reader(Settings())
    reader.read(message([1, 2]), 5.0)
    longer = reader.read(message([1, 2, 3]), 5.0)
    hurried = reader.read(message([1, 2], timeout=1000), 5.0)
    assert described == ["tokens"] * 3
    assert longer.request.inputs["tokens"].shape == (1, 3)
    assert hurried.request.timeout == 1e-3


def test_the_bytes_of_a_known_message_are_counted() -> None:
    reader = Reader(Settings())
    reader.read(message([1, 2]), 5.0)
    wrong = message([1, 2])
    wrong.raw_input_contents[0] = b"12345678"
    with pytest.raises(InputError, match="`tokens` has 8 bytes"):
        reader.read(wrong, 5.0)
    several = message([1, 2])
    several.raw_input_contents.append(b"")
    with pytest.raises(InputError, match="1 inputs and 2 `raw_input_contents`"):
        reader.read(several, 5.0)


def test_typed_contents_are_never_remembered(described: list[str]) -> None:
    """They are not bytes beside what the message says, but a part of it."""
    reader = Reader(Settings())
    for value in (1, 2):
        request = CLASSES["ModelInferRequest"](model_name="m")
        tensor = request.inputs.add(name="tokens", datatype="INT64", shape=[1, 1])
        tensor.contents.int64_contents.append(value)
        np.testing.assert_array_equal(reader.read(request, 5.0).request.inputs["tokens"], [[value]])
    assert described == ["tokens"] * 2


def test_what_is_remembered_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_KNOWN", 2)
    reader = Reader(Settings())
    for steps in (1, 2, 3, 4, 1):
        reader.read(message([0] * steps), 5.0)
        assert len(reader._descriptions) <= 2
    long_name = message([1])
    long_name.model_name = "m" * tensors.MAX_KNOWN_BYTES
    before = len(reader._descriptions)
    reader.read(long_name, 5.0)
    assert len(reader._descriptions) == before
