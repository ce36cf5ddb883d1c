"""`AccessLog`: a line for each request of HTTP and gRPC, which no client can forge."""

import json
import time
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from deploy_rnn.serving.grpc.messages import CLASSES
from deploy_rnn.serving.protocol.access_log import Access, AccessLog
from deploy_rnn.serving.repository import Repository

SERVICE = "inference.GRPCInferenceService"


class Lines:
    """Takes the lines of a log."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def __call__(self, line: bytes) -> None:
        self.lines.append(line)

    def wait(self, count: int) -> list[dict[str, Any]]:
        """The lines, once there are `count` of them: a client may have its answer before there is its line."""
        until = time.monotonic() + 10
        while len(self.lines) < count and time.monotonic() < until:
            time.sleep(0.01)
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_a_line_of_text(lines: Lines) -> None:
    began = time.perf_counter() - 0.25
    AccessLog("text", lines).add(
        Access("http", "127.0.0.1:5000", "POST", "/v2/models/a/infer", "a", 200, 12, began)
    )
    first, *others = lines.lines[0].decode().split(" ")
    assert first.startswith("time=20")
    assert first.endswith("Z")
    assert others[:-1] == [
        "protocol=http", "client=127.0.0.1:5000", "method=POST", "path=/v2/models/a/infer", "model=a", "status=200",
        "bytes=12",
    ]  # fmt: skip
    assert 250 <= float(others[-1].removeprefix("ms=")) < 60_000


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_client_cannot_forge_a_line(form: str, lines: Lines) -> None:
    model = 'a\nstatus=200 "\u2028\x1b[2J' + "\U0001f600" * 1000
    AccessLog(form, lines).add(Access("http", "c", "GET", "/" + "%0A" * 1000, model, 404))
    (line,) = lines.lines
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert b"\x1b" not in line
    assert len(line) < 4096  # what a pipe takes as a whole


def test_requests_over_http(repository: Repository, run_server: Any, lines: Lines) -> None:
    with run_server(repository, access_log=AccessLog("json", lines)) as server:
        url = f"http://{server.http_address}"
        answer = httpx.post(f"{url}/v2/models/sum/infer?secret=1", content=b"{")
        httpx.get(f"{url}/v2/health/live")
        refused, health = lines.wait(2)
    assert refused["client"].startswith("127.0.0.1:")
    assert refused["bytes"] == len(answer.content)
    assert refused["ms"] > 0
    keys = ("protocol", "method", "path", "model", "status")
    assert [refused[key] for key in keys] == ["http", "POST", "/v2/models/sum/infer", "sum", 400]
    assert [health[key] for key in keys] == ["http", "GET", "/v2/health/live", "", 200]


def test_requests_over_grpc(repository: Repository, run_server: Any, lines: Lines) -> None:
    request = CLASSES["ModelInferRequest"](model_name="sum")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.ones(2, np.float32).tobytes())
    good = request.SerializeToString()
    bad = CLASSES["ModelInferRequest"](model_name="sam").SerializeToString()
    with (
        run_server(repository, access_log=AccessLog("json", lines)) as server,
        grpc.insecure_channel(server.grpc_address) as channel,
    ):
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        answer = infer(good)
        lines.wait(1)
        with pytest.raises(grpc.RpcError):
            infer(bad)
        lines.wait(2)
        list(channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([good, bad])))
        logged = lines.wait(5)
    found = [(line["method"], line["model"], line["status"]) for line in logged]
    assert found == [
        ("ModelInfer", "sum", "OK"),
        ("ModelInfer", "sam", "NOT_FOUND"),
        ("ModelStreamInfer", "sum", "OK"),
        ("ModelStreamInfer", "sam", "NOT_FOUND"),
        ("ModelStreamInfer/end", "sam", "OK"),
    ]
    assert logged[0]["bytes"] == len(answer)
    assert all(line["client"].startswith("127.0.0.1:") for line in logged)
