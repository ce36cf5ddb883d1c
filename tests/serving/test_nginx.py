"""Several real servers behind a real nginx: `make nginx` installs what is needed, and runs these tests.

test_clients.py has Triton's clients there, too.
"""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from torch import nn
from tritonclient.utils import InferenceServerException

from tests.serving.behind_nginx import SECONDS, Processes, behind_nginx, wait_for

pytestmark = pytest.mark.nginx

CLIENTS = {"http": triton_http, "grpc": triton_grpc}

STREAMS = range(1, 21)


@pytest.fixture(scope="module")
def servers(behind_nginx_servers: Processes) -> Processes:
    return behind_nginx_servers


@pytest.fixture
def own_servers(real_bundles: Path, tmp_path: Path) -> Iterator[Processes]:
    """Servers that a test may harm."""
    with behind_nginx(real_bundles, tmp_path) as servers:
        yield servers


class Client:
    """One of Triton's clients, that sends chunks of one step to the model `stream`."""

    def __init__(self, protocol: str, servers: Processes) -> None:
        self.module = CLIENTS[protocol]
        address = servers.http_address if protocol == "http" else servers.grpc_address
        self.triton = self.module.InferenceServerClient(address)

    def chunk(self, step: np.ndarray) -> Any:
        tensor = self.module.InferInput("input", [1, 1, 3], "FP32")
        tensor.set_data_from_numpy(step)
        return tensor

    def send(self, stream: int, step: np.ndarray, header: str | None = None, **flags: bool) -> Any:
        headers = {"x-session-id": str(stream) if header is None else header}
        answer = self.triton.infer(
            "stream", [self.chunk(step)], sequence_id=stream, headers=headers, **flags
        )
        return answer.as_numpy("output")

    def answer_or_error(self, stream: int, step: np.ndarray) -> Any:
        try:
            return self.send(stream, step)
        except InferenceServerException as error:
            return str(error)


def steps(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, count, 3)).astype(np.float32)


def expected(model: nn.Module, array: np.ndarray) -> np.ndarray:
    output: np.ndarray = model(torch.from_numpy(array))[0].detach().numpy()
    return output


def ask_tagger(servers: Processes) -> httpx.Response:
    tensor = {"name": "tokens", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]}
    url = f"http://{servers.http_address}/v2/models/tagger/infer"
    return httpx.post(url, json={"inputs": [tensor]}, timeout=SECONDS)


def test_plain_requests_spread(servers: Processes) -> None:
    before = [servers.answered(port, "tagger") for port in servers.ports]
    for _ in range(20):
        assert ask_tagger(servers).status_code == 200
    after = [servers.answered(port, "tagger") for port in servers.ports]
    assert all(late > early for early, late in zip(before, after, strict=True))
    assert sum(after) - sum(before) == 20


def test_every_stream_stays_with_its_process_over_both_protocols(
    servers: Processes, real_models: dict[str, nn.Module]
) -> None:
    clients = [Client("http", servers), Client("grpc", servers)]
    array = steps(4)
    before = [servers.answered(port, "stream") for port in servers.ports]
    for stream in STREAMS:
        outputs = []
        for number in range(4):
            step = np.ascontiguousarray(array[:, number : number + 1])
            client = clients[(stream + number) % 2]
            outputs.append(client.send(stream, step, sequence_start=number == 0))
        np.testing.assert_allclose(
            np.concatenate(outputs, axis=1), expected(real_models["stream"], array), atol=1e-5
        )
    after = [servers.answered(port, "stream") for port in servers.ports]
    shares = [late - early for early, late in zip(before, after, strict=True)]
    assert sum(shares) == 4 * len(STREAMS)
    # Whole streams, and each process has some.
    assert all(share and share % 4 == 0 for share in shares)


@pytest.mark.parametrize("protocol", CLIENTS)
@pytest.mark.parametrize("header", ["", "8", "07"])
def test_a_stream_that_the_header_does_not_name_is_refused(
    protocol: str, header: str, servers: Processes
) -> None:
    client = Client(protocol, servers)
    with pytest.raises(InferenceServerException, match="must be `x-session-id: 7`"):
        client.send(7, steps(1), header, sequence_start=True)


@pytest.mark.parametrize("protocol", CLIENTS)
def test_what_concerns_one_process_is_refused(protocol: str, servers: Processes) -> None:
    client = Client(protocol, servers).triton
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="has several processes behind it"):
            call("tagger")
    assert client.is_model_ready("tagger")


def test_metrics_are_those_of_a_process(servers: Processes) -> None:
    answer = httpx.get(f"http://{servers.http_address}/metrics")
    assert answer.status_code == 501
    assert "/processes/0/metrics to /processes/1/metrics" in answer.json()["error"]


def test_a_body_that_is_too_large(servers: Processes) -> None:
    url = f"http://{servers.http_address}/v2/models/tagger/infer"
    for headers in ({}, {"x-session-id": "7"}):
        answer = httpx.post(url, content=bytes(64 * 2**20 + 1), headers=headers, timeout=SECONDS)
        assert answer.status_code == 413
        assert (
            answer.json()["error"] == "the body is larger than 67108864 bytes, which is the limit."
        )


def test_a_streaming_call(servers: Processes, real_models: dict[str, nn.Module]) -> None:
    """All of one goes to one process, so that it has one stream."""
    client = Client("grpc", servers)
    array = steps(5)
    answers: list[Any] = []
    all_there = threading.Semaphore(0)

    def note(result: Any, error: Any) -> None:
        answers.append(error or result)
        all_there.release()

    client.triton.start_stream(note, headers={"x-session-id": "9"})
    for number in range(5):
        tensor = client.chunk(np.ascontiguousarray(array[:, number : number + 1]))
        client.triton.async_stream_infer(
            "stream", [tensor], sequence_id=9, sequence_start=number == 0
        )
    client.triton.async_stream_infer("stream", [tensor], sequence_id=10, sequence_start=True)
    for _ in range(6):
        assert all_there.acquire(timeout=SECONDS)
    client.triton.stop_stream()
    outputs = [answer.as_numpy("output") for answer in answers[:5]]
    np.testing.assert_allclose(
        np.concatenate(outputs, axis=1), expected(real_models["stream"], array), atol=1e-5
    )
    assert "must be `x-session-id: 10`" in str(answers[5])


def test_a_killed_process_loses_its_streams_and_says_so(
    own_servers: Processes, real_models: dict[str, nn.Module]
) -> None:
    servers = own_servers
    array = steps(2)
    first, second = (np.ascontiguousarray(array[:, number : number + 1]) for number in range(2))
    right = expected(real_models["stream"], array)
    client = {protocol: Client(protocol, servers) for protocol in CLIENTS}
    for stream in STREAMS:
        client["http"].send(stream, first, sequence_start=True)
    killed = servers.ports[0]
    servers.kill(killed)
    # Plain requests go to the other one, also those that the killed one has not answered.
    for _ in range(10):
        assert ask_tagger(servers).status_code == 200
    outcomes = {"goes on": 0, "lost": 0}
    for stream in STREAMS:
        protocol = "http" if stream % 2 else "grpc"
        answer = client[protocol].answer_or_error(stream, second)
        if isinstance(answer, str):
            # From nginx while the process is down, and from the new process then.
            assert "start it again" in answer or "send its first chunk" in answer
            outcomes["lost"] += 1
        else:
            np.testing.assert_allclose(answer, right[:, 1:], atol=1e-5)
            outcomes["goes on"] += 1
    assert all(outcomes.values()), outcomes
    wait_for(lambda: servers.is_ready(killed), servers.log)
    for stream in STREAMS:
        client["http"].send(stream, first, sequence_start=True)
        output = client["grpc"].send(stream, second)
        np.testing.assert_allclose(output, right[:, 1:], atol=1e-5)


def test_nothing_is_lost_when_it_stops(own_servers: Processes) -> None:
    servers = own_servers
    outcomes: list[int] = []
    endings: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                outcomes.append(ask_tagger(servers).status_code)
            except httpx.TransportError:
                # nginx, too, has ended, once all servers had.
                endings.append(count_stopped(servers))
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(outcomes) > 20, servers.log)
    servers.supervisord.send_signal(signal.SIGTERM)
    assert servers.supervisord.wait(SECONDS) == 0
    stop.set()
    for thread in threads:
        thread.join(SECONDS)
    assert {200} <= set(outcomes) <= {200, 503}
    assert set(endings) <= {len(servers.ports)}
    text = servers.log.read_text()
    assert "stopped: nginx (exit status 0)" in text


def count_stopped(servers: Processes) -> int:
    """How many servers have ended as they should."""
    return len(re.findall(r"stopped: server-\d+ \(exit status 0\)", servers.log.read_text()))


def test_the_files_are_for_nginx_to_read(real_bundles: Path, tmp_path: Path) -> None:
    """With spaces and percent signs in the paths."""
    folder = tmp_path / "100 % mine"
    command = [sys.executable, "-m", "deploy_rnn", "nginx", str(real_bundles), "-o", str(folder)]
    subprocess.run([*command, "--processes", "3"], check=True)
    check = ["/usr/sbin/nginx", "-t", "-p", f"{folder}/", "-c", "nginx.conf"]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
