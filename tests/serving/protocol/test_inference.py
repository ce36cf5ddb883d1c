"""Limits, faults and the token are the same over HTTP and gRPC."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from deploy_rnn.errors import DeadlineError, UnauthorizedError
from deploy_rnn.serving.protocol.inference import Deadline, Inference
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest.app import make_app
from deploy_rnn.serving.settings import Settings

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
LATE = "the answer took more than 0.1 s."


def make_inputs() -> list[Any]:
    tensor = triton_grpc.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
    return [tensor]


def test_the_time_limit_of_the_server(
    repository: Repository, run_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """1. Over HTTP, 2. a gRPC call, 3. in a gRPC stream, which goes on: no fault of the server, so the log has none.

    The limit is short, so on a busy machine a good answer may be late too; it is asked for until one is in time.
    """
    model: Any = repository.model("sum")
    model.gate.clear()
    answers: queue.Queue[Any] = queue.Queue()
    with run_server(repository, Settings(request_seconds=0.1)) as server:
        answer = httpx.post(
            f"http://{server.http_address}/v2/models/sum/infer", json=BODY, timeout=20
        )
        assert (answer.status_code, answer.json()) == (504, {"error": LATE})
        with triton_grpc.InferenceServerClient(server.grpc_address) as client:
            with pytest.raises(InferenceServerException) as raised:
                client.infer("sum", make_inputs())
            assert (raised.value.status(), raised.value.message()) == (
                "StatusCode.DEADLINE_EXCEEDED",
                LATE,
            )
            client.start_stream(lambda result, error: answers.put(error or result))
            client.async_stream_infer("sum", make_inputs())
            assert LATE in str(answers.get(timeout=20))
            model.gate.set()
            answer = LATE
            while LATE in str(answer):
                client.async_stream_infer("sum", make_inputs())
                answer = answers.get(timeout=20)
            assert answer.as_numpy("y").item() == 1
            client.stop_stream()
    assert not [record for record in caplog.records if record.exc_info]


def test_the_time_limit_while_the_server_stops(repository: Repository, make_client: Any) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    client = make_client(make_app(repository, Settings(request_seconds=0.1)))
    repository.drain()
    answer = client.post("/v2/models/sum/infer", json=BODY)
    assert (answer.status_code, answer.json()) == (504, {"error": LATE})


def test_a_fault_of_the_server_is_logged_and_not_shown(
    repository: Repository, run_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = repository.model("sum")
    model.fails = ZeroDivisionError("a secret")
    with (
        run_server(repository) as server,
        triton_grpc.InferenceServerClient(server.grpc_address) as client,
        pytest.raises(
            InferenceServerException, match="the server failed; its log has the reason"
        ) as raised,
    ):
        client.infer("sum", make_inputs())
    assert raised.value.status() == "StatusCode.INTERNAL"
    assert "a secret" in caplog.text


def test_an_unauthorized_stream(repository: Repository, run_server: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with (
        run_server(repository, Settings(token="secret")) as server,
        triton_grpc.InferenceServerClient(server.grpc_address) as client,
    ):
        client.start_stream(lambda result, error: answers.put(error))
        error = answers.get(timeout=20)
        assert error.status() == "StatusCode.UNAUTHENTICATED"
        assert "this server requires a token" in error.message()


@pytest.mark.parametrize("authorization", [None, "", "secret", "Bearer secre", b"Bearer secrets"])
def test_authorize(authorization: str | bytes | None, repository: Repository) -> None:
    Inference(repository, Settings()).authorize(authorization)
    guarded = Inference(repository, Settings(token="secret"))
    with pytest.raises(UnauthorizedError, match="send the header `Authorization: Bearer TOKEN`"):
        guarded.authorize(authorization)
    guarded.authorize("Bearer secret")
    guarded.authorize(b"Bearer secret")


async def _call(app: Any, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """What an ASGI application sends for `scope`."""
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": f"{scope['type']}.connect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("token", [None, "secret"])
@pytest.mark.parametrize("path", ["/v2/models/sum", "/", "/v2/health/live"])
def test_a_websocket_is_refused(token: str | None, path: str, repository: Repository) -> None:
    app: Any = make_app(repository, Settings(token=token))
    app._app = _must_not_be_called
    sent = asyncio.run(_call(app, {"type": "websocket", "path": path, "headers": []}))
    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]


async def _must_not_be_called(*args: Any) -> None:
    raise AssertionError("the application was reached")


def test_an_unknown_scope_is_refused(repository: Repository) -> None:
    app: Any = make_app(repository)
    app._app = _must_not_be_called
    with pytest.raises(RuntimeError, match="ASGI scope 'carrier pigeon' is not supported"):
        asyncio.run(_call(app, {"type": "carrier pigeon", "path": "/v2/models/sum", "headers": []}))


def test_a_lifespan_is_the_asgi_server_s_own_business(repository: Repository) -> None:
    """Other ASGI servers than ours ask; the application has nothing to do, with a token or without."""
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    app: Any = make_app(repository, Settings(token="secret"))
    asyncio.run(app({"type": "lifespan", "state": {}}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_deadline_does_not_hide_the_error_of_its_body() -> None:
    async def run(body: Callable[[], Any]) -> None:
        async with Deadline(0.05, "it took"):
            await body()

    async def fail() -> None:
        raise DeadlineError("its own.")

    with pytest.raises(DeadlineError, match=r"^it took more than 0.05 s\.$"):
        asyncio.run(run(lambda: asyncio.sleep(20)))
    with pytest.raises(DeadlineError, match="its own"):
        asyncio.run(run(fail))


def test_a_grpc_call_that_outlasts_a_stop(
    repository: Repository, run_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    errors: list[InferenceServerException] = []

    def infer(address: str) -> None:
        with (
            triton_grpc.InferenceServerClient(address) as client,
            pytest.raises(InferenceServerException) as raised,
        ):
            client.infer("sum", make_inputs())
        errors.append(raised.value)

    with run_server(repository, Settings(drain_seconds=0.3)) as server:
        thread = threading.Thread(target=infer, args=(server.grpc_address,))
        thread.start()
        while model.statistics().queued == 0:
            assert thread.is_alive()
            time.sleep(0.005)
    thread.join(60)
    assert [error.status() for error in errors] == ["StatusCode.UNAVAILABLE"]
    assert not [record for record in caplog.records if record.exc_info]
