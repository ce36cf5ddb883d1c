"""Clients from elsewhere, over real sockets: Triton's own four, and plain HTTP."""

import asyncio
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from torch import nn
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling.model import Model
from deploy_rnn.serving.server import Server
from deploy_rnn.serving.settings import Settings

PROTOCOLS = {"http": triton_http, "grpc": triton_grpc}


def connect(protocol: str, server: Any) -> Any:
    address = server.http_address if protocol == "http" else server.grpc_address
    return PROTOCOLS[protocol].InferenceServerClient(address)


@pytest.fixture(scope="module")
def real(real_bundles: Path) -> Iterator[Repository]:
    repository = Repository(real_bundles, lambda path, name: Model(path, name=name, threads=1))
    repository.load_all()
    yield repository
    repository.close(10)


@pytest.fixture(scope="module")
def one_server(real: Repository, run_server: Any) -> Iterator[Server]:
    with run_server(real) as server:
        yield server


ONE = pytest.param("one_server")
NGINX = pytest.param("behind_nginx_servers", marks=pytest.mark.nginx)
RAY = pytest.param("ray_replicas", marks=pytest.mark.ray)
"""Fixtures of whoever answers `real_bundles`."""


@pytest.fixture(scope="module", params=[ONE, NGINX, RAY])
def real_server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, real_server: Any) -> Iterator[tuple[Any, Any]]:
    """Triton's module for a protocol, and a client of it."""
    with connect(request.param, real_server) as client:
        yield PROTOCOLS[request.param], client


def tokens(module: Any, array: np.ndarray, **options: Any) -> Any:
    tensor = module.InferInput("tokens", array.shape, "INT64")
    tensor.set_data_from_numpy(array, **options)
    return tensor


def test_a_tagger_answers_as_the_model_does(
    triton: tuple[Any, Any], real_models: dict[str, nn.Module]
) -> None:
    module, client = triton
    array = np.random.default_rng(0).integers(20, size=(3, 11))
    answer = client.infer("tagger", [tokens(module, array)], request_id="7")
    expected = real_models["tagger"](torch.from_numpy(array)).detach().numpy()
    np.testing.assert_allclose(answer.as_numpy("output"), expected, atol=1e-5)
    answer_by_name = client.infer(
        "tagger", [tokens(module, array)], outputs=[module.InferRequestedOutput("output")]
    )
    np.testing.assert_array_equal(answer_by_name.as_numpy("output"), answer.as_numpy("output"))


def test_more_rows_than_a_run_takes(
    triton: tuple[Any, Any], real_models: dict[str, nn.Module]
) -> None:
    module, client = triton
    array = np.random.default_rng(0).integers(20, size=(100, 4))
    assert tagger_config(module, client)["max_batch_size"] == 32
    answer = client.infer("tagger", [tokens(module, array)])
    expected = real_models["tagger"](torch.from_numpy(array)).detach().numpy()
    np.testing.assert_allclose(answer.as_numpy("output"), expected, atol=1e-5)


def tagger_config(module: Any, client: Any) -> Any:
    if module is triton_http:
        return client.get_model_config("tagger")
    return client.get_model_config("tagger", as_json=True)["config"]


def test_chunks_of_a_sequence_are_the_sequence(
    triton: tuple[Any, Any], real_models: dict[str, nn.Module]
) -> None:
    module, client = triton
    array = np.random.default_rng(1).standard_normal((2, 9, 3)).astype(np.float32)
    outputs = []
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        chunk = module.InferInput("input", [2, end - begin, 3], "FP32")
        chunk.set_data_from_numpy(np.ascontiguousarray(array[:, begin:end]))
        answer = client.infer(
            "stream", [chunk], sequence_id=42, sequence_start=begin == 0, sequence_end=end == 9,
            headers={"x-session-id": "42"},
        )  # fmt: skip
        outputs.append(answer.as_numpy("output"))
    expected = real_models["stream"](torch.from_numpy(array))[0].detach().numpy()
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, atol=1e-5)


def test_a_state_carried_by_the_client(
    triton: tuple[Any, Any], real_models: dict[str, nn.Module]
) -> None:
    module, client = triton
    array = np.random.default_rng(2).standard_normal((2, 6, 3)).astype(np.float32)
    state = np.zeros((2, 1, 4), np.float32)
    outputs = []
    for chunk in (array[:, :2], array[:, 2:]):
        tensors = [
            module.InferInput("input", chunk.shape, "FP32"),
            module.InferInput("h0", state.shape, "FP32"),
        ]
        for tensor, value in zip(tensors, (chunk, state), strict=True):
            tensor.set_data_from_numpy(np.ascontiguousarray(value))
        answer = client.infer("stream", tensors)
        state = answer.as_numpy("h_n")
        outputs.append(answer.as_numpy("output"))
    expected = real_models["stream"](torch.from_numpy(array))[0].detach().numpy()
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, atol=1e-5)


def test_every_description_that_a_client_requests(triton: tuple[Any, Any]) -> None:
    module, client = triton
    as_json = {} if module is triton_http else {"as_json": True}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tagger")
    assert client.is_model_ready("tagger", "1")
    assert client.get_server_metadata(**as_json)["name"] == "deploy-rnn"
    assert client.get_model_metadata("tagger", **as_json)["inputs"][0]["datatype"] == "INT64"
    config = client.get_model_config("tagger", **as_json)
    config = config.get("config", config)
    assert config["input"][0]["data_type"] == "TYPE_INT64"
    assert [int(size) for size in config["input"][0]["dims"]] == [-1]
    config = client.get_model_config("stream", **as_json)
    config = config.get("config", config)
    assert [tensor["name"] for tensor in config["input"]] == ["input"]
    (state,) = config["sequence_batching"]["state"]
    assert (state["input_name"], state["output_name"]) == ("h0", "h_n")
    assert (
        client.get_inference_statistics("tagger", **as_json)["model_stats"][0]["name"] == "tagger"
    )
    assert len(client.get_inference_statistics(**as_json)["model_stats"]) == 2
    index = client.get_model_repository_index(**as_json)
    models = index.get("models", index) if isinstance(index, dict) else index
    assert [(model["name"], model["state"]) for model in models] == [
        ("stream", "READY"),
        ("tagger", "READY"),
    ]


@pytest.mark.parametrize(
    ("call", "http", "grpc"),
    [
        (lambda client: client.get_model_metadata("nobody"), "404", "StatusCode.NOT_FOUND"),
        (lambda client: client.get_model_metadata("tagger", "9"), "404", "StatusCode.NOT_FOUND"),
        (
            lambda client: client.get_system_shared_memory_status(),
            "501",
            "StatusCode.UNIMPLEMENTED",
        ),
        (lambda client: client.get_trace_settings(), "501", "StatusCode.UNIMPLEMENTED"),
        (
            lambda client: client.load_model("tagger", config="{}"),
            "501",
            "StatusCode.UNIMPLEMENTED",
        ),
    ],
)
def test_errors_reach_the_client(
    call: Callable[[Any], Any], http: str, grpc: str, triton: tuple[Any, Any]
) -> None:
    module, client = triton
    with pytest.raises(InferenceServerException) as raised:
        call(client)
    assert raised.value.status() == (http if module is triton_http else grpc)


def test_a_wrong_input_reaches_the_client(triton: tuple[Any, Any]) -> None:
    module, client = triton
    with pytest.raises(InferenceServerException, match="the request has no `inputs`"):
        client.infer("tagger", [])
    wrong = module.InferInput("tokens", [1, 2], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 2), np.float32))
    with pytest.raises(InferenceServerException, match="tokens"):
        client.infer("tagger", [wrong])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression(algorithm: str, binary: bool, real_server: Any) -> None:
    array = np.random.default_rng(0).integers(20, size=(4, 50))
    with connect("http", real_server) as client:
        tensor = tokens(triton_http, array, binary_data=binary)
        outputs = [triton_http.InferRequestedOutput("output", binary_data=binary)]
        plain = client.infer("tagger", [tensor], outputs=outputs)
        packed = client.infer(
            "tagger", [tensor], outputs=outputs,
            request_compression_algorithm=algorithm, response_compression_algorithm=algorithm,
        )  # fmt: skip
    np.testing.assert_allclose(packed.as_numpy("output"), plain.as_numpy("output"), atol=1e-6)


# Ray's proxy takes them.
@pytest.mark.parametrize("real_server", [ONE, NGINX], indirect=True)
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_messages_of_grpc_are_refused(algorithm: str, real_server: Any) -> None:
    """The library would decompress 60 kB to 60 MB before anything could be refused."""
    array = np.zeros((1, 5), np.int64)
    with connect("grpc", real_server) as client:
        with pytest.raises(InferenceServerException, match=f"'{algorithm}' is disabled") as caught:
            client.infer("tagger", [tokens(triton_grpc, array)], compression_algorithm=algorithm)
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert client.infer("tagger", [tokens(triton_grpc, array)]).as_numpy("output").shape[1] == 5


def test_many_at_once(triton: tuple[Any, Any]) -> None:
    module, client = triton
    arrays = [np.random.default_rng(i).integers(20, size=(1, 3 + i)) for i in range(12)]
    alone = [client.infer("tagger", [tokens(module, array)]).as_numpy("output") for array in arrays]
    if module is triton_http:
        handles = [client.async_infer("tagger", [tokens(module, array)]) for array in arrays]
        together = [handle.get_result().as_numpy("output") for handle in handles]
    else:
        answers: queue.Queue[Any] = queue.Queue()
        for number, array in enumerate(arrays):
            client.async_infer(
                "tagger", [tokens(module, array)], lambda result, error: answers.put((result, error)),
                request_id=str(number),
            )  # fmt: skip
        results = {}
        for _ in arrays:
            result, _error = answers.get(timeout=20)
            results[result.get_response().id] = result
        together = [results[str(number)].as_numpy("output") for number in range(len(arrays))]
    for output_alone, output_together in zip(alone, together, strict=True):
        np.testing.assert_allclose(output_alone, output_together, atol=1e-6)


def test_the_asyncio_clients(real_server: Any) -> None:
    array = np.random.default_rng(0).integers(20, size=(2, 200))

    async def ask(module: Any, address: str) -> Any:
        async with module.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            await client.get_model_metadata("tagger")
            answers = [client.infer("tagger", [tokens(module, array)]) for _ in range(8)]
            return [answer.as_numpy("output") for answer in await asyncio.gather(*answers)]

    over_http = asyncio.run(ask(triton_http_aio, real_server.http_address))
    over_grpc = asyncio.run(ask(triton_grpc_aio, real_server.grpc_address))
    for http_output, grpc_output in zip(over_http, over_grpc, strict=True):
        np.testing.assert_allclose(http_output, grpc_output, atol=1e-6)


def make_inputs(*values: float) -> list[Any]:
    tensor = triton_grpc.InferInput("x", [1, len(values)], "FP32")
    tensor.set_data_from_numpy(np.float32([values]))
    return [tensor]


def test_a_streaming_call_keeps_the_order_and_survives_errors(server: Server) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for number in range(100):
            flags = {"sequence_start": number == 0, "sequence_end": number == 99}
            client.async_stream_infer(
                "sum", make_inputs(1), sequence_id="s", request_id=str(number), **flags
            )
        client.async_stream_infer("nobody", make_inputs(1))
        client.async_stream_infer("sum", make_inputs(1), sequence_id="s")
        client.async_stream_infer("sum", make_inputs(5))
        received = [answers.get(timeout=20) for _ in range(103)]
        client.stop_stream()
    assert [answer.as_numpy("y").item() for answer in received[:100]] == list(range(1, 101))
    assert [answer.get_response().id for answer in received[:100]] == [
        str(number) for number in range(100)
    ]
    assert "unknown model: `nobody`" in str(received[100])
    assert "there is no stream 's'" in str(received[101])
    assert received[102].as_numpy("y").item() == 5


def test_the_asyncio_stream(server: Server) -> None:
    async def ask() -> list[float]:
        async def requests() -> Any:
            for number in range(5):
                yield {
                    "model_name": "sum",
                    "inputs": make_inputs(2),
                    "sequence_id": 9,
                    "sequence_start": number == 0,
                }

        async with triton_grpc_aio.InferenceServerClient(server.grpc_address) as client:
            sums = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                sums.append(result.as_numpy("y").item())
            return sums

    assert asyncio.run(ask()) == [2, 4, 6, 8, 10]


def test_a_client_that_leaves_its_stream(server: Server, repository: Repository) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: None)
        for _ in range(200):
            client.async_stream_infer("sum", make_inputs(1))
        client.stop_stream(cancel_requests=True)
    model.gate.set()
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        assert client.infer("sum", make_inputs(4)).as_numpy("y").item() == 4


def test_typed_contents(server: Server) -> None:
    with triton_grpc.grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="sum")
        tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        tensor.contents.fp32_contents.extend([1, 2])
        answer = stub.ModelInfer(request, timeout=20)
        assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [1, 3]
        request.raw_input_contents.append(b"12345678")
        with pytest.raises(
            triton_grpc.grpc.RpcError, match="has `contents`, but there are `raw_input_contents`"
        ):
            stub.ModelInfer(request, timeout=20)
        request.raw_input_contents.append(b"12345678")
        with pytest.raises(
            triton_grpc.grpc.RpcError, match="the request has 1 inputs and 2 `raw_input_contents`"
        ):
            stub.ModelInfer(request, timeout=20)


def test_a_deadline_of_the_client_reaches_the_model(server: Server, repository: Repository) -> None:
    model: Any = repository.model("sum")
    model.gate.clear()
    with (
        triton_grpc.InferenceServerClient(server.grpc_address) as client,
        pytest.raises(InferenceServerException, match=r"Deadline Exceeded|DEADLINE_EXCEEDED"),
    ):
        client.infer("sum", make_inputs(1), client_timeout=0.05)
    model.gate.set()


def test_a_token(repository: Repository, run_server: Any) -> None:
    with run_server(repository, Settings(token="secret")) as server:
        for protocol in PROTOCOLS:
            with connect(protocol, server) as client:
                assert client.is_server_ready()
                with pytest.raises(InferenceServerException, match="this server requires a token"):
                    client.get_server_metadata()
                metadata = client.get_server_metadata(headers={"authorization": "Bearer secret"})
                assert (metadata["name"] if protocol == "http" else metadata.name) == "deploy-rnn"


def test_load_and_unload(server: Server, folder: Path, new_bundle: Any) -> None:
    for protocol, scale in (("http", 3), ("grpc", 5)):
        new_bundle(folder / "sum", str(scale))
        with connect(protocol, server) as client:
            client.unload_model("sum")
            assert not client.is_model_ready("sum")
            client.load_model("sum")
            with connect("grpc", server) as grpc_client:
                assert grpc_client.infer("sum", make_inputs(1)).as_numpy("y").item() == scale


def test_plain_http(real_server: Any) -> None:
    body = {
        "inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 3], "data": [[1, 2, 3]]}]
    }
    with httpx.Client(base_url=f"http://{real_server.http_address}") as client:
        for _ in range(2):  # on one connection
            answer = client.post("/v2/models/tagger/infer", json=body).raise_for_status().json()
        assert answer["outputs"][0]["shape"] == [1, 3, 10]
        assert client.get("/v2").json()["name"] == "deploy-rnn"


def test_the_server_needs_no_client_of_triton() -> None:
    code = (
        "import sys, deploy_rnn.serving.server; "
        "print([name for name in ('tritonclient', 'torch', 'onnx') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
