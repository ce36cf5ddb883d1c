"""Calls that no client library makes: of strangers, with messages that are none, too large, or never sent."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deploy_rnn.serving.grpc.details import MAX_DETAILS_BYTES, details
from deploy_rnn.serving.grpc.messages import CLASSES, SERVICE
from deploy_rnn.serving.grpc.wire import MAX_FIELDS
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.server import Server
from deploy_rnn.serving.settings import Settings

Status = grpc.StatusCode


@contextmanager
def channel_to(server: Server) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc_address, options) as channel:
        yield channel


@pytest.fixture(scope="module")
def shared(sum_folder: Path, load_repository: Any) -> Iterator[Repository]:
    """Has a loaded `SumModel`, `sum`."""
    with load_repository(sum_folder) as repository:
        yield repository


@pytest.fixture(scope="module")
def channel(shared: Repository, run_server: Any) -> Iterator[grpc.Channel]:
    """To a server of `shared`."""
    with run_server(shared) as server, channel_to(server) as channel:
        yield channel


def infer_bytes(model: str = "sum", request_id: str = "", **fields: Any) -> bytes:
    """A ModelInferRequest whose answer is y = 1, 3."""
    request = CLASSES["ModelInferRequest"](model_name=model, id=request_id, **fields)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.float32([1, 2]).tobytes())
    data: bytes = request.SerializeToString()
    return data


def ask(channel: grpc.Channel, method: str, data: bytes, **options: Any) -> bytes:
    answer: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=20, **options)
    return answer


def refusal(channel: grpc.Channel, method: str, data: bytes) -> tuple[Status, str]:
    with pytest.raises(grpc.RpcError) as raised:
        ask(channel, method, data)
    return raised.value.code(), raised.value.details()


@pytest.mark.parametrize(
    "method", ["SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "LogSettings"]
)
def test_an_extension_that_is_missing_is_named(method: str, channel: grpc.Channel) -> None:
    code, text = refusal(channel, method, b"\xff")
    assert code == Status.UNIMPLEMENTED
    assert text.startswith("this server has no shared memory, tracing or log settings; ")


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the messages that are parsed from now on."""
    names: list[str] = []
    import deploy_rnn.serving.grpc.tensors as tensors

    monkeypatch.setattr(
        tensors, "parse", lambda name, data: names.append(name) or CLASSES[name].FromString(data)
    )
    return names


def test_nothing_of_a_stranger_is_read(
    repository: Repository, run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = parsed(monkeypatch)
    settings = Settings(token="secret")
    with run_server(repository, settings) as server, channel_to(server) as channel:
        # The call is refused though its message is never sent.
        never = threading.Event()
        infer = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as raised:
            infer(iter(lambda: never.wait(30) and b"", b"end"), timeout=20)
        never.set()
        assert raised.value.code() is Status.UNAUTHENTICATED
        assert refusal(channel, "ModelStatistics", b"")[0] is Status.UNAUTHENTICATED
        assert names == []
        metadata = [("authorization", "bearer secret")]
        assert ask(channel, "ModelInfer", infer_bytes(), metadata=metadata)
        assert names == ["ModelInferRequest"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x2a\x00" * (MAX_FIELDS + 1),  # empty inputs
        b"\x32\x00" * (MAX_FIELDS + 1),  # empty outputs
        b"\x2a\xfe\x7f" + b"\x22\x00" * 8191,  # empty parameters of an input
    ],
    ids=["inputs", "outputs", "parameters"],
)
def test_too_many_fields_are_not_parsed(
    data: bytes, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = parsed(monkeypatch)
    code, text = refusal(channel, "ModelInfer", data)
    assert code is Status.RESOURCE_EXHAUSTED
    assert f"more than {MAX_FIELDS} inputs, outputs, parameters" in text
    assert names == []


def test_what_is_not_raw_has_a_limit_of_its_own(repository: Repository, run_server: Any) -> None:
    raw = np.ones((1, 3000), np.float32)
    request = CLASSES["ModelInferRequest"](model_name="sum")
    request.inputs.add(name="x", datatype="FP32", shape=raw.shape)
    request.raw_input_contents.append(raw.tobytes())
    typed = CLASSES["ModelInferRequest"](model_name="sum")
    tensor = typed.inputs.add(name="x", datatype="FP32", shape=raw.shape)
    tensor.contents.fp32_contents.extend(raw.flatten().tolist())
    settings = Settings(max_json_bytes=10_000)
    with run_server(repository, settings) as server, channel_to(server) as channel:
        assert ask(channel, "ModelInfer", request.SerializeToString())
        code, text = refusal(channel, "ModelInfer", typed.SerializeToString())
        assert code is Status.RESOURCE_EXHAUSTED
        assert "beside its `raw_input_contents`; the limit is 10000" in text
        code, text = refusal(channel, "RepositoryModelLoad", b"\x12\xa0\x9c\x01" + b"x" * 20_000)
        assert code is Status.RESOURCE_EXHAUSTED
        assert "the limit for a RepositoryModelLoadRequest is 10000" in text


GARBAGE = {
    "no end": b"\xff\xff",
    "a number of 11 bytes": b"\x0a" + b"\xff" * 10 + b"\x01",
    "longer than it is": b"\x0a\x7fabc",
    "type 7": b"\x0f",
    "a group": b"\x0b\x0c",
    "not UTF-8": b"\x0a\x02\xff\xff",
    "text": b"hello",
    "another message": b"\x0a\x02\x08\x01\x2a\x01\x61",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_message_is_the_client_s_mistake(data: bytes, channel: grpc.Channel) -> None:
    code, text = refusal(channel, "ModelInfer", data)
    assert code in (Status.INVALID_ARGUMENT, Status.NOT_FOUND)
    if code is Status.INVALID_ARGUMENT:
        assert "the message is not a ModelInferRequest" in text


def test_any_method_says_what_cannot_be_parsed(channel: grpc.Channel) -> None:
    expected = (Status.INVALID_ARGUMENT, "the message is not a ModelReadyRequest.")
    assert refusal(channel, "ModelReady", b"\xff\xff") == expected


def test_a_call_without_a_message(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.stream_unary(f"/{SERVICE}/ModelInfer")(iter([]), timeout=20)
    assert raised.value.code() is Status.INVALID_ARGUMENT
    assert raised.value.details() == "the call has no message; it must have one."


def test_a_message_that_does_not_come(repository: Repository, run_server: Any) -> None:
    never = threading.Event()
    with (
        run_server(repository, Settings(body_seconds=0.1)) as server,
        channel_to(server) as channel,
    ):
        infer = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as raised:
            infer(iter(lambda: never.wait(30) and b"", b"end"), timeout=20)
        never.set()
    assert raised.value.code() is Status.DEADLINE_EXCEEDED
    assert raised.value.details() == "the message took more than 0.1 s."


def test_a_bad_message_in_a_stream_is_answered_in_its_place(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    too_many = b"\x2a\x00" * (MAX_FIELDS + 1)
    good = [infer_bytes(request_id="1"), infer_bytes("nobody", "4"), infer_bytes(request_id="5")]
    sent = [good[0], b"\xff\xff", too_many, *good[1:]]
    parse = CLASSES["ModelStreamInferResponse"].FromString
    answers = [parse(answer) for answer in stream(iter(sent), timeout=20)]
    assert [answer.infer_response.id for answer in answers] == ["1", "", "", "4", "5"]
    errors = [answer.error_message for answer in answers]
    assert errors[0] == errors[4] == ""
    assert "the message is not a ModelInferRequest" in errors[1]
    assert f"more than {MAX_FIELDS}" in errors[2]
    assert "unknown model: `nobody`" in errors[3]


def test_health_answers_when_all_places_are_taken(repository: Repository, run_server: Any) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    settings = Settings(max_connections=2, token="secret")
    metadata = [("authorization", "Bearer secret")]
    with run_server(repository, settings) as server, channel_to(server) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        waiting = [infer.future(infer_bytes(), timeout=20, metadata=metadata) for _ in range(2)]
        wait_until(lambda: model.statistics().queued == 2)
        with pytest.raises(grpc.RpcError) as raised:
            ask(channel, "ModelInfer", infer_bytes(), metadata=metadata)
        assert raised.value.code() is Status.UNAVAILABLE
        assert "2 calls are under way, which is the server's limit" in raised.value.details()
        for method in ("ServerLive", "ServerReady"):
            assert ask(channel, method, b"") == b"\x08\x01"
        model.gate.set()
        for answer in waiting:
            assert answer.result()
        assert ask(channel, "ModelInfer", infer_bytes(), metadata=metadata)


def test_a_request_of_a_cancelled_call_is_not_run(
    channel: grpc.Channel, shared: Repository
) -> None:
    model: Any = shared.model("sum")
    model.gate.clear()
    infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    first = infer.future(infer_bytes(), timeout=20)
    wait_until(lambda: model.statistics().queued == 1)
    second = infer.future(infer_bytes(), timeout=20)
    wait_until(lambda: model.statistics().queued == 2)
    second.cancel()
    wait_until(lambda: model._accepted[-1].cancelled())
    model.gate.set()
    assert first.result()


@pytest.mark.parametrize("name", ["x" * 100_000, "\n%é" * 30_000])
def test_a_long_error_reaches_the_client(name: str, channel: grpc.Channel) -> None:
    request = CLASSES["ModelInferRequest"](model_name="sum")
    request.inputs.add(name=name, datatype="none", shape=[1, 2])
    code, text = refusal(channel, "ModelInfer", request.SerializeToString())
    assert code is Status.INVALID_ARGUMENT
    assert text.startswith(f"`{name[:1000]}")
    assert text.endswith("...")


def test_of_a_long_name_of_a_model_an_error_has_the_beginning(channel: grpc.Channel) -> None:
    code, text = refusal(channel, "ModelInfer", infer_bytes("x" * 100_000))
    assert code is Status.NOT_FOUND
    assert text == f"unknown model: `{'x' * 200}` is not found; the models are sum."


def test_details_fit_into_metadata() -> None:
    assert details("short, 50 % é\n") == "short, 50 % é\n"
    assert details("x" * 5000) == "x" * (MAX_DETAILS_BYTES - 3) + "..."
    assert len(details("\n" * 5000)) == (MAX_DETAILS_BYTES - 3) // 3 + 3
    assert len(details("é" * 5000)) == (MAX_DETAILS_BYTES - 3) // 6 + 3
    assert details("a\udc80b") == "a\\udc80b"


def test_calls_during_a_stop(repository: Repository, run_server: Any) -> None:
    """Health says that the server is not ready; what comes now is to be sent elsewhere."""
    model: Any = repository.model("sum")
    model.gate.clear()
    with run_server(repository) as server, channel_to(server) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        accepted = infer.future(infer_bytes(), timeout=20)
        wait_until(lambda: model.statistics().queued == 1)
        loop = server._http_task.get_loop()
        loop.call_soon_threadsafe(server.stop)
        wait_until(lambda: not repository.ready())
        wait_until(lambda: server._grpc._service._calls.draining)
        assert ask(channel, "ServerReady", b"") == b""
        assert ask(channel, "ServerLive", b"") == b"\x08\x01"
        code, text = refusal(channel, "ModelInfer", infer_bytes())
        assert (code, text) == (Status.UNAVAILABLE, "the server is stopping.")
        model.gate.set()
        assert accepted.result()


def test_a_stop_tells_calls_that_take_too_long(repository: Repository, run_server: Any) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    with run_server(repository, Settings(drain_seconds=0.2)) as server:
        channel = grpc.insecure_channel(server.grpc_address)
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        accepted = infer.future(infer_bytes(), timeout=20)
        wait_until(lambda: model.statistics().queued == 1)
    with channel, pytest.raises(grpc.RpcError) as raised:
        accepted.result()
    assert raised.value.code() is Status.UNAVAILABLE
    assert "the server stopped before the request was answered" in raised.value.details()
