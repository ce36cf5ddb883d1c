"""`--stream-header`: a chunk that a proxy may have sent to any process is not run."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from deploy_rnn.serving.protocol.stream_header import header_value
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.server import Server
from deploy_rnn.serving.settings import Settings

MODULES = {"http": triton_http, "grpc": triton_grpc}


@pytest.fixture
def strict_server(repository: Repository, run_server: Any) -> Iterator[Server]:
    with run_server(repository, Settings(stream_header="x-session-id")) as server:
        yield server


def send(protocol: str, server: Server, stream: int | str, header: str | None) -> float:
    """The sum after a first chunk, 2."""
    module = MODULES[protocol]
    address = server.http_address if protocol == "http" else server.grpc_address
    tensor = module.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.float32([[2]]))
    headers = None if header is None else {"x-session-id": header}
    with module.InferenceServerClient(address) as client:
        options = {"sequence_id": stream, "sequence_start": bool(stream), "headers": headers}
        return float(client.infer("sum", [tensor], **options).as_numpy("y").item())


@pytest.mark.parametrize("protocol", MODULES)
def test_a_chunk_needs_the_header(protocol: str, strict_server: Server) -> None:
    assert send(protocol, strict_server, 7, "7") == 2
    assert send(protocol, strict_server, "user/7", "user/7") == 2
    assert send(protocol, strict_server, "ö 7", "%C3%B6%207") == 2
    for header in (None, "8", "07", "7 ,7"):
        with pytest.raises(InferenceServerException, match="must be `x-session-id: 7`"):
            send(protocol, strict_server, 7, header)
    # Without a stream it does not matter.
    assert send(protocol, strict_server, 0, None) == 2
    assert send(protocol, strict_server, 0, "8") == 2


def test_two_headers_are_refused(strict_server: Server) -> None:
    """A proxy may look at the other one."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2]}
    body = {"inputs": [tensor], "parameters": {"sequence_id": 7, "sequence_start": True}}
    headers = [("x-session-id", "7"), ("x-session-id", "8")]
    url = f"http://{strict_server.http_address}/v2/models/sum/infer"
    answer = httpx.post(url, json=body, headers=headers)
    assert answer.status_code == 400
    assert 'has "7", "8"; must be' in answer.json()["error"]


def test_a_server_of_its_own_wants_no_header(server: Server) -> None:
    assert send("http", server, 7, None) == 2


def test_two_streams_have_two_values() -> None:
    streams = ["a b", "a%20b", "a+b", "a_b", "ab", "ä", "a\u0308", "7 ", "7"]
    values = {header_value(stream) for stream in streams}
    assert len(values) == len(streams)
    assert all(
        value.isascii() and value.isprintable() and value == value.strip() for value in values
    )


@pytest.mark.parametrize("name", ["", "X-Session-Id", "x session", "x-session-bin", "x_session"])
def test_a_name_that_no_header_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="must be lower-case letters, digits and hyphens"):
        Settings(stream_header=name)
