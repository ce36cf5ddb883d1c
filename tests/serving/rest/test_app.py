"""The protocol over HTTP, in process: every endpoint, JSON and binary bodies, and the status of each error."""

import gzip
import json
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_rnn.errors import DeadlineError, InputError, TooLargeError
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest import bodies, infer
from deploy_rnn.serving.rest.app import make_app
from deploy_rnn.serving.rest.compression import choose_encoding, decompress
from deploy_rnn.serving.scheduling.request import Request
from deploy_rnn.serving.settings import Settings
from deploy_rnn.tensor_spec import TensorSpec

INFER = "/v2/models/sum/infer"


def tensor(values: Any = ((1.0, 2.0, 3.0),), **more: Any) -> dict[str, Any]:
    array = np.asarray(values, np.float32)
    return {
        "name": "x",
        "datatype": "FP32",
        "shape": list(array.shape),
        "data": array.ravel().tolist(),
    } | more


def infer_body(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs or (tensor(),)), **more}


def binary_request(fields: dict[str, Any], *tensors: bytes) -> dict[str, Any]:
    """Arguments for `client.post`: a body of JSON and the bytes of tensors."""
    text = json.dumps(fields).encode()
    return {
        "content": text + b"".join(tensors),
        "headers": {"Inference-Header-Content-Length": str(len(text))},
    }


def test_json_in_and_json_out(client: Any) -> None:
    answer = client.post(INFER, json=infer_body(id="7"))
    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "sum", "model_version": "1", "id": "7",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 3.0, 6.0]},
            {"name": "total_n", "datatype": "FP32", "shape": [1, 1], "data": [6.0]},
        ],
    }  # fmt: skip


def test_binary_in_and_binary_out(client: Any) -> None:
    raw = np.float32([[1, 2], [3, 4]]).tobytes()
    head = {
        "name": "x",
        "datatype": "FP32",
        "shape": [2, 2],
        "parameters": {"binary_data_size": len(raw)},
    }
    wanted = [{"name": "total_n", "parameters": {"binary_data": True}}, {"name": "y"}]
    answer = client.post(INFER, **binary_request(infer_body(head, outputs=wanted), raw))
    length = int(answer.headers["Inference-Header-Content-Length"])
    outputs = {output["name"]: output for output in json.loads(answer.content[:length])["outputs"]}
    assert outputs["y"]["data"] == [1, 3, 3, 7]
    assert outputs["total_n"]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(answer.content[length:], "<f4").tolist() == [3, 7]


def test_all_outputs_binary(client: Any) -> None:
    answer = client.post(INFER, json=infer_body(parameters={"binary_data_output": True}))
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert len(answer.content) == length + 4 * (3 + 1)


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_both_ways(
    encoding: str, compress: Callable[[bytes], bytes], client: Any
) -> None:
    body = json.dumps(infer_body(tensor(np.ones((1, 500))))).encode()
    headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    answer = client.post(INFER, content=compress(body), headers=headers)
    assert answer.headers["Content-Encoding"] == encoding
    assert answer.json()["outputs"][0]["data"][-1] == 500


def test_binary_tensors_are_not_compressed_for_a_client_that_names_two_encodings(
    client: Any,
) -> None:
    long = infer_body(tensor(np.ones((1, 500))), parameters={"binary_data_output": True})
    answer = client.post(INFER, json=long, headers={"Accept-Encoding": "gzip, deflate"})
    assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip;q=0", None), ("gzip; q=0", None), ("gzip ;Q=0.000 , deflate", "deflate"), ("identity", None),
        ("gzip;q=0.001", "gzip"), ("GZIP", "gzip"), ("br, deflate;q=1.0", "deflate"), ("", None),
    ],
)  # fmt: skip
def test_an_encoding_with_weight_0_is_not_used(accepted: str, encoding: str | None) -> None:
    assert choose_encoding(accepted, binary=False) == encoding


def test_a_stream_by_number_and_by_name(client: Any) -> None:
    for sequence in (5, "five"):
        sums = []
        for step in range(3):
            parameters = {
                "sequence_id": sequence,
                "sequence_start": step == 0,
                "sequence_end": step == 2,
            }
            answer = client.post(INFER, json=infer_body(tensor([[1.0]]), parameters=parameters))
            sums.append(answer.json()["outputs"][0]["data"][0])
        assert sums == [1, 2, 3]
        late = client.post(INFER, json=infer_body(parameters={"sequence_id": sequence}))
        assert late.status_code == 400
        assert late.json() == {"error": f"there is no stream {sequence!r}."}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "the request has no `inputs`."),
        ({"inputs": 3}, "`inputs` must be a list of objects."),
        ({"inputs": [tensor(), tensor()]}, "an input appears twice; the inputs are x, x."),
        ({"id": 3}, "`id` must be a string, got 3."),
        ({"inputs": [tensor(shape=[[[1]] * 9, 3])]}, "`x` has size [[1], [1],"),
        ({"inputs": [tensor(datatype="F32")]}, '`x` has datatype "F32"; must be one of BOOL,'),
        (
            {"inputs": [tensor(datatype="BYTES", data=["a"])]},
            '`x` has datatype "BYTES"; must be one of BOOL,',
        ),
        (
            {"inputs": [tensor(shape=[-1, 3])]},
            "`x` has size -1 in its shape; sizes must be integers >= 0.",
        ),
        ({"inputs": [tensor(shape=[1.0, 3])]}, "`x` has size 1.0 in its shape"),
        (
            {"inputs": [tensor(shape=[1, 4])]},
            "`x` has 3 values in [3]; its shape [1, 4] needs 4, flat or nested",
        ),
        (
            {"inputs": [tensor(data=[1, "2", 3])]},
            '`x` contains values that are not FP32, such as "2".',
        ),
        ({"inputs": [tensor(data=[[1], [2, 3]])]}, "`x` has data that is not a tensor: "),
        ({"inputs": [tensor(data=[1e300, 0, 0])]}, "`x` contains values out of range for FP32."),
        (
            {"inputs": [tensor(datatype="UINT8", data=[1, 2, 256])]},
            "`x` contains values out of range for UINT8, 0 to 255.",
        ),
        (
            {"inputs": [tensor(datatype="INT8", data=[1, 2, 2.5])]},
            "`x` contains values that are not INT8",
        ),
        (
            {"parameters": {"sequence_id": 1.5}},
            "`sequence_id` must be an integer or a string, got 1.5.",
        ),
        (
            {"parameters": {"sequence_start": True}},
            "`sequence_start` is set, but `sequence_id` is missing, 0 or empty.",
        ),
        (
            {"parameters": {"sequence_id": 3, "sequence_end": 1}},
            "`sequence_end` must be true or false, got 1.",
        ),
        (
            {"parameters": {"timeout": 10**400}},
            "must be a number of microseconds, an integer from 0 to",
        ),
        (
            {"parameters": {"timeout": -1}},
            "`timeout` (=-1) must be a number of microseconds, an integer from 0 to",
        ),
        (
            {"parameters": {"timeout": None, "sequence_id": True}},
            "`sequence_id` must be an integer or a string, got true.",
        ),
        # What the model refuses, too, is said in the words of the protocol.
        ({"inputs": [tensor(datatype="FP64")]}, "`x` has datatype FP64; must be FP32."),
        (
            {"inputs": [tensor(shape=[3])]},
            "`x` has shape [3]; must be [B, T], with no size 0.",
        ),
        (
            {"inputs": [tensor(shape=[0, 3], data=[])]},
            "`x` has shape [0, 3]; must be [B, T], with no size 0.",
        ),
    ],
)
def test_the_message_says_what_is_wrong(change: dict[str, Any], message: str, client: Any) -> None:
    answer = client.post(INFER, json=infer_body() | change)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            r'"id": "a\ud800"',
            r"`id` (='a\ud800') must be text; it contains half of a surrogate pair.",
        ),
        (r'"outputs": [{"name": "\ud800"}]', r"`name` (='\ud800') must be text;"),
        (r'"parameters": {"sequence_id": "\ud800"}', r"`sequence_id` (='\ud800') must be text;"),
        (
            '"parameters": {"sequence_id": 1e400}',
            "`sequence_id` must be an integer or a string, got a huge number.",
        ),
        ('"parameters": {"timeout": 1e400}', "must be a number of microseconds"),
        (
            '"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1e400]}]',
            "`x` contains values out of range for FP32.",
        ),
        (
            '"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [%s]}]'
            % ("9" * 400),
            "`x` contains values out of range for FP32.",
        ),
        (
            '"inputs": [{"name": "x", "datatype": "FP32", "shape": ' + "[" * 500 + "]" * 500 + "}]",
            "`x` has size [[[[...]]]] in its shape",
        ),
    ],
)
def test_values_that_python_reads_and_json_or_text_has_not(
    change: str, message: str, client: Any
) -> None:
    body = json.dumps(infer_body())[:-1] + ", " + change + "}"
    answer = client.post(INFER, content=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"id": "\xe9"}', "the request is not JSON: it is not UTF-8."),
        (b'{"id": %s}' % (b"9" * 5000), "the request is not JSON: a number has 5000 digits."),
    ],
)
def test_what_is_not_json_is_told_without_words_of_python(
    body: bytes, message: str, client: Any
) -> None:
    answer = client.post(INFER, content=body)
    assert (answer.status_code, answer.json()["error"]) == (400, message)


@pytest.mark.parametrize("path", [INFER, "/v1/models/sum:predict", "/v2/repository/index"])
def test_a_body_whose_head_says_that_it_is_too_large_is_not_waited_for(
    path: str, client: Any
) -> None:
    answer = client.post(path, content=b"{", headers={"Content-Length": "99999999999999999999"})
    assert answer.status_code == 413
    assert "more than 2097152 bytes of JSON" in answer.json()["error"]


def test_the_index_takes_a_boolean_only(client: Any) -> None:
    answer = client.post("/v2/repository/index", json={"ready": "yes"})
    message = '`ready` must be true or false, got "yes".'
    assert (answer.status_code, answer.json()["error"]) == (400, message)


@pytest.mark.parametrize("path", ["/v2/", "/v2/models/"])
def test_of_a_long_path_a_message_has_the_beginning(path: str, client: Any) -> None:
    answer = client.get(path + "x" * 10_000)
    assert answer.status_code == 404
    assert len(answer.json()["error"]) < 400


@pytest.mark.parametrize(
    ("size", "pieces", "message"),
    [
        (12, b"1234567", "`x` has binary_data_size 12, but only 7 bytes are left in the body."),
        (8, b"12345678", "`x` has 8 bytes; FP32 [1, 3] needs 12, 4 for each element."),
        (
            12,
            b"123456789012345",
            "3 bytes of the body belong to no input; set binary_data_size of each input.",
        ),
        (-1, b"", "`x` has binary_data_size -1; must be its number of bytes."),
        (True, b"", "`x` has binary_data_size true; must be its number of bytes."),
    ],
)
def test_binary_data_of_a_wrong_size(size: Any, pieces: bytes, message: str, client: Any) -> None:
    head = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 3],
        "parameters": {"binary_data_size": size},
    }
    answer = client.post(INFER, **binary_request(infer_body(head), pieces))
    assert (answer.status_code, answer.json()) == (400, {"error": message})


@pytest.mark.parametrize("header", ["-1", "x", "99999", "1" * 30, "", "1.5", "٣"])
def test_an_invalid_header_length(header: str, client: Any) -> None:
    headers = {"Inference-Header-Content-Length": header.encode()}
    answer = client.post(INFER, content=b"{}", headers=headers)
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the request is empty; must be a JSON object."),
        (b"[1]", "the request's JSON must be an object, got [1]."),
        (b'{"inputs": [NaN]}', "NaN is not a number in JSON; send it as binary data"),
        (b'{"a":' * 100_000, "the request's JSON is nested too deeply."),
        (
            b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "the request's JSON is nested too deeply.",
        ),
        (b"\xff\xfe", "the request is not JSON"),
        (b'{"id":' + b"9" * 10_000 + b"}", "the request is not JSON"),
    ],
)
def test_invalid_json(body: bytes, message: str, client: Any) -> None:
    answer = client.post(INFER, content=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nobody", 404), ("POST", "/v2/models/nobody/infer", 404),
        ("GET", "/v2/models/sum/versions/2", 404), ("POST", "/v2/models/sum/versions/2/infer", 404),
        ("POST", "/v2/repository/models/nobody/load", 404), ("GET", "/nothing", 404), ("GET", INFER, 405),
        ("GET", "/v2/systemsharedmemory/status", 501), ("POST", "/v2/cudasharedmemory/region/a/register", 501),
        ("GET", "/v2/trace/setting", 501), ("POST", "/v2/models/sum/trace/setting", 501), ("GET", "/v2/logging", 501),
    ],
)  # fmt: skip
def test_unknown_paths_and_methods(method: str, path: str, status: int, client: Any) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (tensor(parameters={"shared_memory_region": "r"}, data=None), "`x` requests shared memory"),
        (
            tensor(parameters={"shared_memory_region": "r"}),
            "`x` requests shared memory (`shared_memory_region`)",
        ),
    ],
)
def test_extensions_that_are_not_supported(
    fields: dict[str, Any], message: str, client: Any
) -> None:
    answer = client.post(INFER, json=infer_body(fields))
    assert answer.status_code == 501
    assert message in answer.json()["error"]


def test_too_large(repository: Repository, make_client: Any) -> None:
    client = make_client(make_app(repository, Settings(max_bytes=1000)))
    for answer in (
        client.post(INFER, **binary_request({}, b" " * 1001)),
        client.post(
            INFER,
            content=gzip.compress(b" " * 100_000),
            headers={"Content-Encoding": "gzip", "Inference-Header-Content-Length": "9"},
        ),
        client.post(INFER, json=infer_body(tensor(shape=[2**40, 2**40]))),
    ):
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["error"]


def test_json_has_a_limit_of_its_own(repository: Repository, make_client: Any) -> None:
    client = make_client(make_app(repository, Settings(max_json_bytes=1000)))
    raw = np.ones(500, np.float32).tobytes()
    head = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 500],
        "parameters": {"binary_data_size": len(raw)},
    }
    as_binary = {"binary_data_output": True}
    bodies = {
        "a request": {"json": infer_body(tensor(np.ones((1, 500))), parameters=as_binary)},
        "one that is small until it is decompressed": {
            "content": gzip.compress(json.dumps(infer_body(id="x" * 1000)).encode()),
            "headers": {"Content-Encoding": "gzip"},
        },
        "the part before binary tensors": binary_request(infer_body(head, id="x" * 1000), raw),
        "an answer": binary_request(infer_body(head), raw),
    }
    for label, body in bodies.items():
        answer = client.post(INFER, **body)
        assert answer.status_code == 413, label
        assert "1000 bytes of JSON, which is the limit; use binary tensors." in answer.text
    answer = client.post(INFER, **binary_request(infer_body(head, parameters=as_binary), raw))
    assert answer.status_code == 200
    answer = client.post("/v2/repository/index", content=b" " * 1001)
    assert answer.status_code == 413


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(20_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="more than 1000 bytes once decompressed"):
            decompress(bomb, "gzip", 1000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_body_is_decompressed_only_when_it_is_decoded(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the few threads for this: on the event loop it would hold up all others, and before that, take their memory.

    The 1 kB of a compressed body can become 1 MB.
    """
    steps = []

    def noted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def step(*args: Any) -> Any:
            steps.append((name, threading.current_thread().name.rpartition("_")[0]))
            return real(*args)

        monkeypatch.setattr(module, name, step)

    noted(bodies, "decompress")
    noted(infer, "read")
    raw = bytes(200_000)
    head = tensor(shape=[1, 50_000], parameters={"binary_data_size": len(raw)})
    del head["data"]
    request = binary_request(infer_body(head, parameters={"binary_data_output": True}), raw)
    headers = {**request["headers"], "Content-Encoding": "gzip"}
    packed = gzip.compress(request["content"])
    assert len(packed) < 1000
    assert client.post(INFER, content=packed, headers=headers).status_code == 200
    assert steps == [("decompress", "deploy-rnn coding"), ("read", "deploy-rnn coding")]


def test_a_damaged_or_unknown_encoding(client: Any) -> None:
    packed = gzip.compress(json.dumps(infer_body()).encode())
    for body, encoding, status in (
        (b"no", "gzip", 400),
        (packed[:-3], "gzip", 400),
        (packed, "br", 501),
    ):
        assert (
            client.post(INFER, content=body, headers={"Content-Encoding": encoding}).status_code
            == status
        )


def test_busy_late_and_broken(repository: Repository, make_client: Any) -> None:
    client = make_client(make_app(repository, Settings(request_seconds=0.05)))
    model: Any = repository.model("sum")
    model.gate.clear()
    assert client.post(INFER, json=infer_body()).status_code == 504
    # The other answers have time: on a busy machine the short limit would be theirs too.
    client = make_client(make_app(repository))
    model.max_queue = 0
    answer = client.post(INFER, json=infer_body())
    assert (answer.status_code, answer.json()) == (503, {"error": "the queue is full."})
    assert answer.headers["Retry-After"] == "1"
    model.max_queue = 9
    model.gate.set()
    model.fails = DeadlineError("too late.")
    assert client.post(INFER, json=infer_body()).status_code == 504
    model.fails = ZeroDivisionError("a secret")
    answer = client.post(INFER, json=infer_body())
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "the server failed; its log has the reason."},
    )


def test_a_timeout_in_microseconds_reaches_the_model(client: Any) -> None:
    assert (
        client.post(INFER, json=infer_body(parameters={"timeout": 60_000_000})).status_code == 200
    )
    answer = client.post(INFER, json=infer_body(parameters={"timeout": 1}))
    assert (answer.status_code, answer.json()) == (
        504,
        {"error": "its time ran out before it was run."},
    )


def test_nan_is_sent_as_binary_only(client: Any) -> None:
    raw = np.float32([[np.nan]]).tobytes()
    head = {"name": "x", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}
    answer = client.post(INFER, **binary_request(infer_body(head), raw))
    assert answer.status_code == 400
    assert (
        "output `y` contains NaN or infinity, which JSON cannot represent" in answer.json()["error"]
    )
    answer = client.post(
        INFER, **binary_request(infer_body(head, parameters={"binary_data_output": True}), raw)
    )
    assert answer.status_code == 200


def test_a_token(repository: Repository, make_client: Any) -> None:
    client = make_client(make_app(repository, Settings(token="secret")))
    assert client.get("/v2/health/ready").status_code == 200
    for wrong in (
        {},
        *({"Authorization": text} for text in ("Bearer secre", "secret", "Bearer", "Basic secret")),
    ):
        answer = client.get("/v2", headers=wrong)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    for right in ("Bearer secret", "bearer secret", "BEARER  secret "):
        assert client.get("/v2", headers={"Authorization": right}).status_code == 200


def test_health_follows_the_repository(folder: Path, make_client: Any, sum_model: Any) -> None:
    repository = Repository(folder, sum_model)
    client = make_client(make_app(repository))
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/sum/ready")
    assert [client.get(path).status_code for path in paths] == [200, 503, 404]
    repository.load_all()
    assert [client.get(path).status_code for path in paths] == [200, 200, 200]
    repository.drain()
    assert [client.get(path).status_code for path in paths] == [200, 503, 503]
    assert (
        client.post(INFER, json=infer_body()).status_code == 200
    )  # what still arrives is answered
    repository.close()
    assert client.post(INFER, json=infer_body()).status_code == 503


def test_descriptions_of_a_model(client: Any) -> None:
    metadata = client.get("/v2/models/sum/versions/1").json()
    # States are not listed: who sends all inputs that are could not send chunks of a stream.
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}]
    config = client.get("/v2/models/sum/config").json()
    assert (config["max_batch_size"], config["input"]) == (
        8, [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1], "format": "FORMAT_NONE", "optional": False}],
    )  # fmt: skip
    assert [output["name"] for output in config["output"]] == ["y"]
    assert config["sequence_batching"]["state"] == [
        {
            "input_name": "total", "output_name": "total_n", "data_type": "TYPE_FP32", "dims": [1],
            "initial_state": [{"name": "zeros", "data_type": "TYPE_FP32", "dims": [1], "zero_data": True}],
        }
    ]  # fmt: skip
    stats = client.get("/v2/models/sum/stats").json()["model_stats"][0]
    assert (stats["inference_count"], stats["execution_count"], stats["last_inference"]) == (
        5,
        3,
        1_000_000,
    )
    assert stats["inference_stats"]["queue"] == {"count": 0, "ns": 500_000_000}
    assert [(batch["batch_size"], batch["compute_infer"]) for batch in stats["batch_stats"]] == [
        (1, {"count": 2, "ns": 100_000_000}), (3, {"count": 1, "ns": 150_000_000}),
    ]  # fmt: skip
    assert client.get("/v2").json()["name"] == "deploy-rnn"


def test_lengths_have_one_axis_or_another_of_size_1(
    folder: Path, sum_model: Any, load_repository: Any, make_client: Any
) -> None:
    """[B, 1] is what Triton asks for, since a configuration of its clients needs an axis besides that of the batch."""
    seen = []

    class WithLengths(sum_model):  # type: ignore[misc]
        inputs = (*sum_model.inputs, TensorSpec("lengths", "int64", ("B",)))
        optional = frozenset({"total", "lengths"})

        def submit(self, request: Request) -> Any:
            lengths = request.inputs["lengths"]
            if lengths.ndim != 1:
                raise InputError("lengths: int64 (B,)")
            seen.append(lengths)
            inputs = {name: array for name, array in request.inputs.items() if name != "lengths"}
            return super().submit(replace(request, inputs=inputs))

    with load_repository(folder, WithLengths) as repository:
        client = make_client(make_app(repository))
        metadata = client.get("/v2/models/sum").json()
        assert metadata["inputs"][1] == {"name": "lengths", "datatype": "INT64", "shape": [-1, 1]}
        config = client.get("/v2/models/sum/config").json()
        assert config["input"][1] == {
            "name": "lengths", "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []},
            "format": "FORMAT_NONE", "optional": True,
        }  # fmt: skip
        for shape, data in (([2], [3, 1]), ([2, 1], [3, 1]), ([2, 1], [[3], [1]])):
            lengths = {"name": "lengths", "datatype": "INT64", "shape": shape, "data": data}
            body = infer_body(tensor(((1, 2, 3), (4, 5, 6))), lengths)
            assert client.post(INFER, json=body).status_code == 200
            np.testing.assert_array_equal(seen.pop(), [3, 1])
        lengths |= {"shape": [1, 2], "data": [3, 1]}
        answer = client.post(INFER, json=infer_body(tensor(), lengths))
        message = "`lengths` has shape [1, 2]; must be [B] or [B, 1], with no size 0."
        assert (answer.status_code, answer.json()["error"]) == (400, message)


def test_metrics(client: Any) -> None:
    text = client.get("/metrics").text
    for line in (
        "deploy_rnn_ready 1.0", 'deploy_rnn_requests_total{model="sum",outcome="failure"} 1.0',
        'deploy_rnn_queue_seconds_total{model="sum"} 0.5', 'deploy_rnn_steps_padded_total{model="sum"} 10.0',
        'deploy_rnn_batch_size_bucket{le="2",model="sum"} 2.0',
        'deploy_rnn_batch_size_bucket{le="+Inf",model="sum"} 3.0',
        'deploy_rnn_batch_size_sum{model="sum"} 5.0', 'deploy_rnn_streams{model="sum"} 0.0',
        'deploy_rnn_failures_total{model="sum",reason="busy"} 1.0',
        'deploy_rnn_failures_total{model="sum",reason="run_error"} 0.0',
        'deploy_rnn_queue_duration_seconds_bucket{le="0.001",model="sum"} 2.0',
        'deploy_rnn_queue_duration_seconds_bucket{le="0.0025",model="sum"} 3.0',
        'deploy_rnn_queue_duration_seconds_bucket{le="60.0",model="sum"} 3.0',
        'deploy_rnn_queue_duration_seconds_bucket{le="+Inf",model="sum"} 4.0',
        'deploy_rnn_queue_duration_seconds_count{model="sum"} 4.0',
        'deploy_rnn_queue_duration_seconds_sum{model="sum"} 70.5',
        'deploy_rnn_run_duration_seconds_count{model="sum"} 0.0',
        'deploy_rnn_request_duration_seconds_count{model="sum"} 0.0',
    ):  # fmt: skip
        assert line in text.splitlines()
    assert "process_resident_memory_bytes" in text


def test_a_request_that_cannot_be_read_is_a_failure_of_its_own_reason(client: Any) -> None:
    assert client.post(INFER, content=b"{").status_code == 400
    assert client.post("/v2/models/sam/infer", content=b"{").status_code == 404
    lines = client.get("/metrics").text.splitlines()
    assert 'deploy_rnn_failures_total{model="sum",reason="unreadable"} 1.0' in lines
    assert not any("sam" in line for line in lines)


def test_load_and_unload(client: Any, folder: Path, new_bundle: Any) -> None:
    new_bundle(folder / "sum", "2")
    assert client.post("/v2/repository/models/sum/load", json={}).status_code == 200
    assert client.post(INFER, json=infer_body()).json()["outputs"][0]["data"] == [2, 6, 12]
    new_bundle(folder / "sum", "broken")
    answer = client.post("/v2/repository/models/sum/load")
    assert (answer.status_code, answer.json()) == (500, {"error": "'broken' is not a scale."})
    assert client.post(INFER, json=infer_body()).json()["outputs"][0]["data"] == [2, 6, 12]
    assert (
        client.post(
            "/v2/repository/models/sum/load", json={"parameters": {"config": "{}"}}
        ).status_code
        == 501
    )
    assert client.post("/v2/repository/models/sum/unload", json={}).status_code == 200
    assert client.post(INFER, json=infer_body()).status_code == 404
    index = client.post("/v2/repository/index", json={}).json()
    assert index == [{"name": "sum", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}]
    assert client.post("/v2/repository/index", json={"ready": True}).json() == []
