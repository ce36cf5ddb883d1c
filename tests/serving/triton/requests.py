"""The same requests to any server of the Open Inference Protocol, good and bad, and what came of each.

A request is a function of the server's addresses. `REQUESTS` has them by name: what docs/serving.md calls them.
"""

import gzip
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.serving.triton.addresses import Addresses

SECONDS = 60.0
INPUT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 2, 3)
CHUNK = INPUT[:1]


@dataclass(frozen=True)
class Answer:
    """What a server says.

    Attributes:
        status: of HTTP, or of gRPC; in a streaming call, "OK" or "error".
        fields: the names of the fields of its JSON or message, with dots for those within; sorted.
        outputs: name -> array.
        message: the text of an error.
    """

    status: str
    fields: tuple[str, ...] = ()
    outputs: Mapping[str, np.ndarray] | None = None
    message: str = ""

    @property
    def good(self) -> bool:
        return self.status in ("200", "OK")


Ask = Callable[[Addresses], Answer]

REQUESTS: dict[str, Ask] = {}


# HTTP


def tensor(**changes: Any) -> dict[str, Any]:
    """The good input as JSON has it, with changes; None leaves a field out."""
    fields = {
        "name": "input",
        "datatype": "FP32",
        "shape": list(INPUT.shape),
        "data": INPUT.ravel().tolist(),
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


def body(*inputs: Any, **fields: Any) -> dict[str, Any]:
    return {"inputs": list(inputs) or [tensor()], **fields}


def over_http(
    addresses: Addresses,
    content: Any,
    path: str = "/v2/models/whole/infer",
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> Answer:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    url = f"http://{addresses.http}{path}"
    answer = httpx.request(method, url, content=data, headers=headers, timeout=SECONDS)
    header_length = answer.headers.get("Inference-Header-Content-Length")
    text = answer.content[: int(header_length)] if header_length else answer.content
    try:
        fields = json.loads(text) if text else {}
    except ValueError:
        fields = {"(not JSON)": None}
    outputs = None
    if answer.status_code == 200 and "/infer" in path and "classification" not in str(content):
        outputs = _json_outputs(fields["outputs"], answer.content[len(text) :])
    names = tuple(sorted(set(_names(fields))))
    message = str(fields.get("error", "")) if isinstance(fields, dict) else ""
    return Answer(str(answer.status_code), names, outputs, message)


def _json_outputs(outputs: Sequence[Mapping[str, Any]], raw: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], np.float32)
        else:
            array = np.frombuffer(raw[:size], np.float32)
            raw = raw[size:]
        arrays[output["name"]] = array.reshape(output["shape"])
    return arrays


def _names(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            path = f"{prefix}.{name}" if prefix else name
            yield path
            yield from _names(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner, prefix)


def json_request(name: str, content: Any, **options: Any) -> None:
    REQUESTS[name] = lambda addresses: over_http(addresses, content, **options)


def get_request(path: str) -> None:
    shown = path.replace("whole", "M")
    REQUESTS[f"GET {shown}"] = lambda addresses: over_http(addresses, b"", path, method="GET")


PATHS = (
    "/v2", "/v2/health/live", "/v2/health/ready", "/v2/nothing",
    "/v2/models/whole", "/v2/models/whole/ready", "/v2/models/whole/config", "/v2/models/whole/stats",
    "/v2/models/whole/versions/1", "/v2/models/whole/versions/9", "/v2/models/whole/infer", "/v2/models/stream",
    "/v2/models/nothing", "/v2/models/nothing/ready", "/v2/models/nothing/config", "/v2/models/nothing/stats",
)  # fmt: skip
for path in PATHS:
    get_request(path)

json_request("JSON", body())
json_request("JSON, nested data", body(tensor(data=INPUT.tolist())))
json_request("JSON, with an id", body(id="seven"))
json_request("JSON, an output by name", body(outputs=[{"name": "output"}]))
json_request("JSON, version 1", body(), path="/v2/models/whole/versions/1/infer")
json_request(
    "JSON in gzip", gzip.compress(json.dumps(body()).encode()), headers={"Content-Encoding": "gzip"}
)
json_request("gzip that is none", b"no gzip", headers={"Content-Encoding": "gzip"})
json_request(
    "an encoding that is unknown", json.dumps(body()).encode(), headers={"Content-Encoding": "zip"}
)
json_request("a parameter that nobody knows", body(parameters={"colour": "red"}))
json_request("unknown output", body(outputs=[{"name": "nothing"}]))
json_request("an output twice", body(outputs=[{"name": "output"}, {"name": "output"}]))
json_request("unknown input", body(tensor(name="nothing")))
json_request("one input too many", body(tensor(), tensor(name="nothing")))
json_request("an input twice", body(tensor(), tensor()))
json_request("no inputs", body(inputs=[]))
json_request("`inputs` missing", {"id": "x"})
json_request("wrong datatype", body(tensor(datatype="INT64", data=[1] * 12)))
json_request("unknown datatype", body(tensor(datatype="FP7")))
json_request("no datatype", body(tensor(datatype=None)))
json_request("no name", body(tensor(name=None)))
json_request("no shape", body(tensor(shape=None)))
json_request("no data", body(tensor(data=None)))
json_request("too few values", body(tensor(data=[1.0])))
json_request("too many values", body(tensor(data=[1.0] * 13)))
json_request("text among the values", body(tensor(data=[*[1.0] * 11, "x"])))
json_request("true among the values", body(tensor(data=[*[1.0] * 11, True])))
json_request("null among the values", body(tensor(data=[*[1.0] * 11, None])))
json_request("NaN as JSON", json.dumps(body(tensor(data=[*[1.0] * 11, float("nan")]))).encode())
json_request("a value beyond FP32", body(tensor(data=[*[1.0] * 11, 1e300])))
json_request("one axis too few", body(tensor(shape=[4, 3])))
json_request("one axis too many", body(tensor(shape=[1, 2, 2, 3])))
json_request("wrong fixed size", body(tensor(shape=[2, 3, 2])))
json_request("no rows", body(tensor(shape=[0, 2, 3], data=[])))
json_request("no steps", body(tensor(shape=[2, 0, 3], data=[])))
json_request("a negative size", body(tensor(shape=[-2, 2, 3])))
json_request("a size that is text", body(tensor(shape=[2, "2", 3])))
json_request("a size with a fraction", body(tensor(shape=[2, 2.5, 3])))
json_request("a huge shape", body(tensor(shape=[2**40, 2**40, 3])))
json_request("more rows than max_batch_size", body(tensor(shape=[40, 2, 3], data=[0.5] * 240)))
json_request("not JSON", b"{")
json_request("JSON that is a list", [1])
json_request("an empty body", b"")
json_request("`inputs` that is text", {"inputs": "input"})
json_request("`parameters` that is text", body(parameters="x"))
json_request("an id that is a number", body(id=7))
json_request("unknown model", body(), path="/v2/models/nothing/infer")
json_request("unknown version", body(), path="/v2/models/whole/versions/9/infer")
json_request("a version that is no number", body(), path="/v2/models/whole/versions/x/infer")
json_request("unknown path", body(), path="/v2/models/whole/guess")
json_request("PUT", body(), method="PUT")
json_request("repository index", {}, path="/v2/repository/index")
json_request(
    "classification", body(outputs=[{"name": "output", "parameters": {"classification": 2}}])
)


def binary(
    raw: bytes = INPUT.tobytes(), size: int | None = None, header: int = 0, **changes: Any
) -> Ask:
    """A request with its input behind the JSON. `header` is added to the length of the JSON that is stated."""
    size = len(raw) if size is None else size
    inputs = tensor(data=None, parameters={"binary_data_size": size}, **changes)
    text = json.dumps(
        body(inputs, outputs=[{"name": "output", "parameters": {"binary_data": True}}])
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(text) + header)}
    return lambda addresses: over_http(addresses, text + raw, headers=headers)


REQUESTS["binary"] = binary()
REQUESTS["binary, too few bytes"] = binary(INPUT.tobytes()[:-4])
REQUESTS["binary, too many bytes"] = binary(INPUT.tobytes() + b"1234")
REQUESTS["binary, bytes that belong to no input"] = binary(INPUT.tobytes() + b"1234", INPUT.nbytes)
REQUESTS["binary, a size beyond the body"] = binary(size=1000)
REQUESTS["binary, a negative size"] = binary(size=-48)
REQUESTS["binary, a header length beyond the body"] = binary(header=1000)
REQUESTS["binary, a header length that is too small"] = binary(header=-2)
REQUESTS["binary and data"] = lambda addresses: over_http(
    addresses, body(tensor(parameters={"binary_data_size": 48}))
)
REQUESTS["binary, a header length that is no number"] = lambda addresses: over_http(
    addresses, body(), headers={"Inference-Header-Content-Length": "x"}
)
REQUESTS["binary, without JSON"] = lambda addresses: over_http(
    addresses, CHUNK.tobytes(), headers={"Inference-Header-Content-Length": "0"}
)
json_request("JSON in, binary out", body(parameters={"binary_data_output": True}))

# gRPC


def message(raw: Sequence[bytes] | None = (INPUT.tobytes(),), **changes: Any) -> Any:
    """The good request with changes of its input, and other raw contents; None for typed ones."""
    fields = {"name": "input", "datatype": "FP32", "shape": INPUT.shape, **changes}
    made = service_pb2.ModelInferRequest(
        model_name="whole", inputs=[service_pb2.ModelInferRequest.InferInputTensor(**fields)]
    )
    if raw is None:
        made.inputs[0].contents.fp32_contents.extend(INPUT.ravel())
    else:
        made.raw_input_contents.extend(raw)
    return made


def over_grpc(addresses: Addresses, made: Any) -> Answer:
    with grpc.insecure_channel(addresses.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            return _grpc_answer(stub.ModelInfer(made, timeout=SECONDS))
        except grpc.RpcError as error:
            return Answer(error.code().name, message=error.details() or "")


def over_grpc_stream(addresses: Addresses, *messages: Any) -> Answer:
    """What comes of the last of the messages."""
    with grpc.insecure_channel(addresses.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            answers = list(stub.ModelStreamInfer(iter(messages), timeout=SECONDS))
        except grpc.RpcError as error:
            return Answer(error.code().name, message=error.details() or "")
    if len(answers) != len(messages):
        return Answer(f"{len(answers)} answers to {len(messages)}")
    last = answers[-1]
    if last.error_message:
        return Answer("error", message=last.error_message)
    return _grpc_answer(last.infer_response)


def _grpc_answer(answer: Any) -> Answer:
    fields = {descriptor.name for descriptor, _ in answer.ListFields()}
    outputs = {}
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        fields.update(f"outputs.{descriptor.name}" for descriptor, _ in output.ListFields())
        outputs[output.name] = np.frombuffer(raw, np.float32).reshape(output.shape)
    return Answer("OK", tuple(sorted(fields)), outputs)


def describe(method: str, **fields: Any) -> None:
    """A call that asks for no inference."""

    def ask(addresses: Addresses) -> Answer:
        with grpc.insecure_channel(addresses.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            made = getattr(service_pb2, f"{method}Request")(**fields)
            try:
                answer = getattr(stub, method)(made, timeout=SECONDS)
            except grpc.RpcError as error:
                return Answer(error.code().name, message=error.details() or "")
        # Zeros count as well: a statistic may be 0 on one side.
        as_json = MessageToDict(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return Answer("OK", tuple(sorted(set(_names(as_json)))))

    model = " of an unknown model" if "nothing" in fields.values() else ""
    REQUESTS[f"{method}{model}"] = ask


describe("ServerLive")
describe("ServerReady")
describe("ServerMetadata")
describe("RepositoryIndex")
for model in ("whole", "nothing"):
    describe("ModelReady", name=model)
    describe("ModelMetadata", name=model)
    describe("ModelConfig", name=model)
    describe("ModelStatistics", name=model)


def changed(made: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def grpc_request(name: str, made: Any) -> None:
    REQUESTS[f"gRPC, {name}"] = lambda addresses: over_grpc(addresses, made)


def twice(made: Any, field: str) -> Any:
    """With the first item of a repeated field once more."""
    items = getattr(made, field)
    items.append(items[0])
    return made


grpc_request("raw contents", message())
grpc_request("typed contents", message(None))
grpc_request("with an id", changed(message(), id="seven"))
both = message(None)
both.raw_input_contents.append(INPUT.tobytes())
grpc_request("raw and typed contents", both)
grpc_request("no contents", message(()))
grpc_request("an input twice", twice(twice(message(), "inputs"), "raw_input_contents"))
grpc_request("one raw content too many", twice(message(), "raw_input_contents"))
grpc_request("too few bytes", message([INPUT.tobytes()[:-4]]))
grpc_request("too many bytes", message([INPUT.tobytes() + b"1234"]))
grpc_request("unknown input", message(name="nothing"))
grpc_request("wrong datatype", message(datatype="INT32"))
grpc_request("unknown datatype", message(datatype="FP7"))
grpc_request("wrong fixed size", message(shape=[2, 3, 2]))
grpc_request("one axis too few", message(shape=[4, 3]))
grpc_request("a negative size", message(shape=[-2, 2, 3]))
grpc_request("unknown model", changed(message(), model_name="nothing"))
grpc_request("unknown version", changed(message(), model_version="9"))
grpc_request("no model", changed(message(), model_name=""))
unknown_output = message()
unknown_output.outputs.add(name="nothing")
grpc_request("unknown output", unknown_output)


def stream_request(name: str, *messages: Any) -> None:
    REQUESTS[f"gRPC stream, {name}"] = lambda addresses: over_grpc_stream(addresses, *messages)


stream_request("raw contents", message())
stream_request("unknown input", message(name="nothing"))
stream_request("good after bad", message(name="nothing"), message())
stream_request("unknown model", changed(message(), model_name="nothing"))

# Sequences

NUMBERS = itertools.count(1000)


def chunk(
    sequence: Any, *, start: bool = False, end: bool = False, rows: int = 1
) -> dict[str, Any]:
    data = np.repeat(CHUNK, rows, axis=0)
    inputs = tensor(shape=list(data.shape), data=data.ravel().tolist())
    parameters = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
    if sequence is None:
        return body(inputs)
    return body(inputs, parameters=parameters)


def chunk_message(content: Mapping[str, Any]) -> Any:
    """The same chunk for gRPC."""
    inputs = content["inputs"][0]
    raw = np.array(inputs["data"], np.float32).tobytes()
    made = changed(message([raw], shape=inputs["shape"]), model_name="stream")
    for name, value in content.get("parameters", {}).items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(made.parameters[name], kind, value)
    return made


def send_chunks(addresses: Addresses, protocol: str, chunks: Sequence[Mapping[str, Any]]) -> Answer:
    """The answer to the last; those before must be good."""
    if protocol == "gRPC stream":
        return over_grpc_stream(addresses, *map(chunk_message, chunks))
    answers = []
    for content in chunks:
        if protocol == "gRPC":
            answers.append(over_grpc(addresses, chunk_message(content)))
        else:
            answers.append(over_http(addresses, content, "/v2/models/stream/infer"))
    *before, last = answers
    assert all(answer.good for answer in before), before
    return last


def sequence_requests(
    name: str, make: Callable[[Any], Sequence[Mapping[str, Any]]], text: str = ""
) -> None:
    """One request for each protocol, each in sequences of its own."""

    def ask(addresses: Addresses, protocol: str) -> Answer:
        number = next(NUMBERS)
        return send_chunks(addresses, protocol, make(f"{text}{number}" if text else number))

    for protocol in ("HTTP", "gRPC", "gRPC stream"):
        REQUESTS[f"{protocol} sequence, {name}"] = lambda addresses, p=protocol: ask(addresses, p)


sequence_requests("start", lambda name: [chunk(name, start=True)])
sequence_requests("go on", lambda name: [chunk(name, start=True), chunk(name)])
sequence_requests("end", lambda name: [chunk(name, start=True), chunk(name, end=True)])
sequence_requests("start and end in one", lambda name: [chunk(name, start=True, end=True)])
sequence_requests("a second start", lambda name: [chunk(name, start=True), chunk(name, start=True)])
sequence_requests("text ids", lambda name: [chunk(name, start=True), chunk(name)], "text")
sequence_requests("never started", lambda name: [chunk(name)])
sequence_requests("end, never started", lambda name: [chunk(name, end=True)])
sequence_requests("after the end", lambda name: [chunk(name, start=True, end=True), chunk(name)])
sequence_requests("without an id", lambda name: [chunk(None)])
sequence_requests("start, with id 0", lambda name: [chunk(0, start=True)])
sequence_requests("start, with an empty id", lambda name: [chunk("", start=True)])
sequence_requests("two rows", lambda name: [chunk(name, start=True, rows=2)])


def idle(addresses: Addresses) -> Answer:
    """Wait longer and longer, until the sequence is gone."""
    until = time.monotonic() + SECONDS
    seconds = 1.5
    while True:
        name = next(NUMBERS)
        assert send_chunks(addresses, "HTTP", [chunk(name, start=True)]).good
        time.sleep(seconds)
        answer = send_chunks(addresses, "HTTP", [chunk(name)])
        if not answer.good or time.monotonic() > until:
            return answer
        seconds *= 2


REQUESTS["HTTP sequence, idle for too long"] = idle
