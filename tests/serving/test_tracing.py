"""Traces: what a real request over HTTP and over gRPC leaves behind, and what is sent to a collector."""

import asyncio
import gzip
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from deploy_rnn.console import UsageError
from deploy_rnn.errors import RunError
from deploy_rnn.serving import Settings, cli, make_app
from deploy_rnn.serving.protocol.tracing import Tracing
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest.app import Guard
from deploy_rnn.serving.server import Server
from deploy_rnn.serving.telemetry import Telemetry, _exporters

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
PARENT_ID = 0xB7AD6B7169203331
SAMPLED = f"00-{TRACE_ID:032x}-{PARENT_ID:016x}-01"
NOT_SAMPLED = f"00-{TRACE_ID:032x}-{PARENT_ID:016x}-00"
METHOD = "inference.GRPCInferenceService/ModelInfer"

BODY = {
    "id": "first",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}],
}


class Spans:
    """The spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def clear(self) -> None:
        self._exporter.clear()

    def wait(self, count: int) -> list[ReadableSpan]:
        """Those of the requests so far, of the first to end first; in each, that of the request, its wait, its run.

        A client may have its answer before the span of its request ends.
        """
        deadline = time.monotonic() + 60
        while len(self._exporter.get_finished_spans()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        spans = self._exporter.get_finished_spans()
        assert len(spans) == count
        traces = [span.context.trace_id for span in spans if span.context]

        def place(span: ReadableSpan) -> tuple[int, bool, int]:
            assert span.context is not None
            is_part = span.kind is not SpanKind.SERVER
            return traces.index(span.context.trace_id), is_part, span.start_time or 0

        return sorted(spans, key=place)


@pytest.fixture(scope="module")
def all_spans() -> Spans:
    return Spans()


@pytest.fixture
def spans(all_spans: Spans) -> Spans:
    """Those of one test; each waits for all of its own."""
    all_spans.clear()
    return all_spans


@pytest.fixture(scope="module")
def repository(sum_folder: Path, load_repository: Any) -> Iterator[Repository]:
    with load_repository(sum_folder) as repository:
        yield repository


@pytest.fixture(scope="module")
def traced(repository: Repository, all_spans: Spans, run_server: Any) -> Iterator[Server]:
    settings = Settings(token="secret")
    with run_server(repository, settings, None, Tracing(all_spans.provider)) as server:
        yield server


def post(server: Server, body: Any = BODY, path: str = "sum", **headers: str) -> httpx.Response:
    url = f"http://{server.http_address}/v2/models/{path}/infer"
    headers = {"authorization": "Bearer secret", "user-agent": "test/1"} | headers
    return httpx.post(url, json=body, headers=headers)


def infer(server: Server, values: list[float], **options: Any) -> np.ndarray:
    """One request over gRPC."""
    tensor = triton_grpc.InferInput("x", [1, len(values)], "FP32")
    tensor.set_data_from_numpy(np.array([values], np.float32))
    headers = {"authorization": "Bearer secret"} | options.pop("headers", {})
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        return client.infer("sum", [tensor], headers=headers, **options).as_numpy("y")


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def milliseconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e6


def test_a_request_over_http(traced: Server, spans: Spans) -> None:
    assert post(traced, traceparent=SAMPLED).status_code == 200
    request, queue, run = spans.wait(3)
    assert request.name == "POST /v2/models/{model}/infer"
    assert request.kind is SpanKind.SERVER
    assert request.parent is not None
    assert (request.parent.trace_id, request.parent.span_id) == (TRACE_ID, PARENT_ID)
    host, _, port = traced.http_address.rpartition(":")
    found = attributes(request)
    assert 0 < found.pop("client.port") < 65536
    assert found == {
        "http.request.method": "POST", "http.route": "/v2/models/{model}/infer", "url.path": "/v2/models/sum/infer",
        "url.scheme": "http", "network.protocol.version": "1.1", "server.address": host, "server.port": int(port),
        "client.address": "127.0.0.1", "user_agent.original": "test/1", "http.response.status_code": 200,
        "deploy_rnn.model": "sum",
    }  # fmt: skip
    assert request.status.status_code is StatusCode.UNSET
    # As the model of these tests says of itself.
    assert (queue.name, milliseconds(queue)) == ("queue", 1)
    assert (run.name, milliseconds(run)) == ("run", 2)
    for span in (queue, run):
        assert span.parent is not None
        assert request.context is not None
        assert span.parent.span_id == request.context.span_id
    assert queue.end_time == run.start_time
    named = {"deploy_rnn.model": "sum", "deploy_rnn.request.id": "first"}
    assert attributes(queue) == named
    assert attributes(run) == named | {"deploy_rnn.run.rows": 2}


def test_a_request_over_grpc(traced: Server, spans: Spans) -> None:
    parent = {"traceparent": SAMPLED}
    options = {"sequence_id": "s", "sequence_start": True, "sequence_end": True}
    assert infer(traced, [1, 2], headers=parent, **options).tolist() == [[1, 3]]
    request, queue, run = spans.wait(3)
    assert (request.name, request.kind) == (METHOD, SpanKind.SERVER)
    assert request.parent is not None
    assert (request.parent.trace_id, request.parent.span_id) == (TRACE_ID, PARENT_ID)
    found = attributes(request)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", found.pop("client.address"))
    assert found == {
        "rpc.system.name": "grpc", "rpc.method": METHOD, "rpc.response.status_code": "OK", "deploy_rnn.model": "sum",
    }  # fmt: skip
    for span, name in ((queue, "queue"), (run, "run")):
        assert span.name == name
        assert span.parent is not None
        assert request.context is not None
        assert span.parent.span_id == request.context.span_id
        assert attributes(span)["deploy_rnn.sequence.id"] == "s"


def test_requests_of_a_streaming_call_are_spans_in_its_span(traced: Server, spans: Spans) -> None:
    answers: list[Any] = []
    done = threading.Event()

    def take(result: Any, error: Any) -> None:
        answers.append(error or result.as_numpy("y").tolist())
        if len(answers) == 2:
            done.set()

    tensor = triton_grpc.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
    with triton_grpc.InferenceServerClient(traced.grpc_address) as client:
        client.start_stream(take, headers={"authorization": "Bearer secret"})
        for number in ("1", "2"):
            client.async_stream_infer(
                "sum", [tensor], request_id=number, sequence_id=7, sequence_start=number == "1"
            )
        assert done.wait(60)
    assert answers == [[[1.0]], [[2.0]]]
    call, *parts = spans.wait(5)
    assert call.name == "inference.GRPCInferenceService/ModelStreamInfer"
    assert sorted((span.name, attributes(span)["deploy_rnn.request.id"]) for span in parts) == [
        ("queue", "1"), ("queue", "2"), ("run", "1"), ("run", "2"),
    ]  # fmt: skip
    assert {span.parent.span_id for span in parts if span.parent} == {call.context.span_id}  # type: ignore[union-attr]


@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + 32 * "0" + f"-{PARENT_ID:016x}-01"])
def test_a_request_without_a_valid_parent_begins_a_trace(
    parent: str, traced: Server, spans: Spans
) -> None:
    headers = {"traceparent": parent} if parent else {}
    assert post(traced, **headers).status_code == 200
    assert spans.wait(3)[0].parent is None


def test_what_the_parent_does_not_sample_is_not_recorded(traced: Server, spans: Spans) -> None:
    assert post(traced, traceparent=NOT_SAMPLED).status_code == 200
    infer(traced, [1], headers={"traceparent": NOT_SAMPLED})
    infer(traced, [1], headers={"traceparent": SAMPLED})
    assert spans.wait(3)[0].name == METHOD


def test_what_is_asked_often_and_tells_little_has_no_span(traced: Server, spans: Spans) -> None:
    token = {"authorization": "Bearer secret"}
    for path in ("/v2/health/ready", "/metrics", "/v2/models/sum", "/"):
        assert httpx.get(f"http://{traced.http_address}{path}", headers=token).status_code == 200
    with triton_grpc.InferenceServerClient(traced.grpc_address) as client:
        assert client.is_server_ready()
    infer(traced, [1])
    assert spans.wait(3)[0].name == METHOD


def test_a_client_at_fault_is_not_an_error_of_the_server(traced: Server, spans: Spans) -> None:
    assert post(traced, {"inputs": []}).status_code == 400
    assert post(traced, path="unknown/versions/1").status_code == 404
    assert post(traced, authorization="Bearer wrong").status_code == 401
    bad, unknown, refused = spans.wait(3)
    for span, status in ((bad, 400), (unknown, 404), (refused, 401)):
        assert attributes(span)["http.response.status_code"] == status
        assert span.status.status_code is StatusCode.UNSET
    assert unknown.name == "POST /v2/models/{model}/versions/{version}/infer"


def test_a_run_that_fails(traced: Server, spans: Spans, repository: Repository) -> None:
    model: Any = repository.model("sum", "")
    model.fails = RunError("it broke.")
    assert post(traced).status_code == 500
    request, run = spans.wait(2)
    assert attributes(request)["error.type"] == "500"
    assert (run.name, attributes(run)["error.type"]) == ("run", "run_error")
    with pytest.raises(InferenceServerException):
        infer(traced, [1])
    call, _ = spans.wait(4)[2:]
    found = attributes(call)
    assert (found["rpc.response.status_code"], found["error.type"]) == ("INTERNAL", "INTERNAL")
    for span in (request, run, call):
        assert span.status.status_code is StatusCode.ERROR
    model.fails = None


def test_a_client_that_leaves(traced: Server, spans: Spans, repository: Repository) -> None:
    model: Any = repository.model("sum", "")
    model.gate.clear()
    try:
        with pytest.raises(InferenceServerException):
            infer(traced, [1], client_timeout=0.1)
        (request,) = spans.wait(1)
    finally:
        model.gate.set()
    code = attributes(request)["rpc.response.status_code"]
    assert code in ("CANCELLED", "DEADLINE_EXCEEDED")  # which, is for the clock that was faster


def test_without_traces_nothing_stands_in_the_way(repository: Repository) -> None:
    assert isinstance(make_app(repository), Guard)


def collector(bodies: list[bytes]) -> ThreadingHTTPServer:
    """What a collector of OTLP over HTTP takes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            bodies.append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def without_otel() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """An .onnx file: y is twice x."""
    shape = ["B", "T"]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    graph = helper.make_graph(nodes, "doubling", tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", 18)]
    path = tmp_path / "double.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_the_command_sends_what_it_has_before_it_ends(doubling: Path) -> None:
    bodies: list[bytes] = []
    receiver = collector(bodies)
    endpoint = f"--otlp-endpoint=http://127.0.0.1:{receiver.server_port}"
    command = [sys.executable, "-m", "deploy_rnn", "serve", str(doubling), endpoint]
    # Nothing would be sent for an hour but at the end.
    environ = without_otel() | {
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        "OTEL_RESOURCE_ATTRIBUTES": "zone=b",
    }
    process = subprocess.Popen(
        [*command, "--http-port=0", "--grpc-port=0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    try:
        assert process.stdout is not None
        addresses = [re.search(r"HTTP on (\S+),", process.stdout.readline()) for _ in range(2)]
        assert addresses[1] is not None
        answer = httpx.post(f"{addresses[1][1]}/v2/models/double/infer", json=BODY)
        assert answer.json()["outputs"][0]["data"] == [2, 4, 6, 8]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
        receiver.shutdown()
        receiver.server_close()
    (body,) = bodies
    (resource_spans,) = ExportTraceServiceRequest.FromString(body).resource_spans
    resource = {pair.key: pair.value.string_value for pair in resource_spans.resource.attributes}
    assert (resource["service.name"], resource["zone"]) == ("deploy-rnn", "b")
    spans = {span.name: span for span in resource_spans.scope_spans[0].spans}
    request = spans.pop("POST /v2/models/{model}/infer")
    assert spans.keys() == {"queue", "run"}
    for span in spans.values():
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano


@pytest.mark.parametrize("endpoint", ["http://x:1", "http://x:1/", "http://x:1/v1/traces"])
def test_the_endpoint_may_be_the_whole_address(endpoint: str) -> None:
    (exporter,) = _exporters({}, endpoint)
    assert exporter._endpoint == "http://x:1/v1/traces"  # type: ignore[attr-defined]
    exporter.shutdown()


def test_a_collector_that_hangs_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy_rnn.serving.telemetry.CLOSE_SECONDS", 0.01)
    telemetry = Telemetry({}, "http://127.0.0.1:9")
    asked = threading.Event()
    leave = threading.Event()

    def hang() -> None:
        asked.set()
        leave.wait(60)

    monkeypatch.setattr(telemetry._provider, "shutdown", hang)

    async def close() -> None:
        await telemetry.close()
        assert asked.is_set()
        leave.set()

    asyncio.run(close())


@pytest.mark.parametrize(
    ("variables", "endpoint", "wanted"),
    [
        ({}, None, False),
        ({}, "http://localhost:4318", True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, None, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, None, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, None, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, None, False),
        ({"OTEL_SERVICE_NAME": "tagger"}, None, False),
        ({"OTEL_SDK_DISABLED": "True"}, "http://localhost:4318", False),
    ],
)
def test_who_asks_for_traces(
    variables: dict[str, str], endpoint: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(os.environ) - set(without_otel()):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli._wants_traces(endpoint) is wanted


def test_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asks for traces is told; a variable that a platform sets for all its programs keeps none from starting."""
    monkeypatch.setitem(sys.modules, "deploy_rnn.serving.telemetry", None)
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'deploy-rnn\[otel\]'"):
        cli._make_telemetry("http://localhost:4318")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    with caplog.at_level(logging.WARNING):
        assert cli._make_telemetry(None) is None
    assert "no traces are sent" in caplog.text


@pytest.mark.parametrize(
    ("variables", "endpoint", "message"),
    [
        (
            {},
            "collector:4317",
            r"`--otlp-endpoint` \(='collector:4317'\) must begin with http:// or https://",
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            None,
            r"OTEL_EXPORTER_OTLP_PROTOCOL \(='http/json'\) must be http/protobuf or grpc",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "jaeger"},
            None,
            r"OTEL_TRACES_EXPORTER \(='jaeger'\) is not installed; must be otlp, console or none",
        ),
    ],
)
def test_what_cannot_be_sent_anywhere(
    variables: dict[str, str], endpoint: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Telemetry(variables, endpoint)
