"""Replicas on a real Ray cluster of two nodes: `make ray` installs what is needed, and runs these tests.

test_clients.py has Triton's clients there, too. test_ray_streams.py has what needs no Ray.
"""

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from geventhttpclient.response import HTTPConnectionClosed
from torch import nn
from tritonclient.utils import InferenceServerException

from deploy_rnn.export import export_bundle
from tests.serving.on_ray import RAY_PYTHON, Replicas

pytestmark = pytest.mark.ray

CLIENTS = {"http": triton_http, "grpc": triton_grpc}

SECONDS = 240
"""More than enough for anything to happen on a busy machine."""

REFUSALS = ("start it again", "send its first chunk with `start`")
"""What a replica says that does not have the stream."""

DIED = ("500", "502", "503", "StatusCode.INTERNAL", "StatusCode.UNAVAILABLE")

LOST = "lost"
"""The outcome of a chunk whose replica, or whose proxy, has died with it."""


@pytest.fixture
def replicas(ray_replicas: Replicas) -> Replicas:
    """Two replicas on two nodes; whatever a test does to them is made good."""
    if len(ray_replicas.tell("replicas")) != 2:
        ray_replicas.tell("scale", 2)
    return ray_replicas


class Sequences:
    """Clients that each send one sequence, chunk after chunk, and know what must come.

    Args:
        model: what answers.
        protocol: "http" or "grpc".
        named: whether the header, or the metadata, has the name of the stream.
    """

    def __init__(
        self, replicas: Replicas, model: nn.Module, protocol: str, *, named: bool, names: range
    ) -> None:
        self._module = CLIENTS[protocol]
        address = replicas.http_address if protocol == "http" else replicas.grpc_address
        self._client = self._module.InferenceServerClient(address)
        self._header = {"http": "x-session-id", "grpc": "session_id"}[protocol] if named else None
        self._model = model
        self.names = list(names)
        self._sent: dict[int, list[np.ndarray]] = {}
        self._random = np.random.default_rng(names.start)

    def start(self, name: int) -> str:
        """Send a first chunk: "right", or why it was not answered."""
        self._sent[name] = []
        return self._send(name, sequence_start=True)

    def go_on(self, name: int) -> str:
        """Send a next chunk: "right", or why it was not answered."""
        return self._send(name)

    def _send(self, name: int, **flags: bool) -> str:
        chunk = self._random.standard_normal((1, 2, 3)).astype(np.float32)
        tensor = self._module.InferInput("input", chunk.shape, "FP32")
        tensor.set_data_from_numpy(chunk)
        headers = {self._header: str(name)} if self._header else None
        try:
            answer = self._client.infer(
                "stream", [tensor], sequence_id=name, headers=headers, **flags
            )
        except (HTTPConnectionClosed, OSError):
            return LOST
        except InferenceServerException as error:
            return LOST if error.status() in DIED else str(error)
        self._sent[name].append(chunk)
        whole = torch.from_numpy(np.concatenate(self._sent[name], axis=1))
        right = self._model(whole)[0][:, -2:].detach().numpy()
        np.testing.assert_allclose(answer.as_numpy("output"), right, atol=1e-5)
        return "right"


def make_sequences(replicas: Replicas, model: nn.Module) -> list[Sequences]:
    """Of both protocols, named and not."""
    made = []
    for number, protocol in enumerate(["http", "grpc"]):
        for named in (False, True):
            first = 1000 * (2 * number + named) + 1
            names = range(first, first + 8)
            made.append(Sequences(replicas, model, protocol, named=named, names=names))
    return made


def go_on(groups: list[Sequences]) -> Counter[bool]:
    """Send a chunk of every sequence. One that is refused says that it must start again, and then does.

    Returns:
        How many were right at once, and how many were refused first.
    """
    outcomes: Counter[bool] = Counter()
    for group in groups:
        for name in group.names:
            outcome = group.go_on(name)
            outcomes[outcome == "right"] += 1
            if outcome != "right":
                assert outcome == LOST or any(text in outcome for text in REFUSALS), outcome
                begin(group, name)
    return outcomes


def begin(group: Sequences, name: int) -> None:
    """Start a sequence; while replicas are dying, that may take more than one attempt."""
    outcome = group.start(name)
    while outcome != "right":
        assert outcome == LOST, outcome
        outcome = group.start(name)


def start(groups: list[Sequences]) -> None:
    for group in groups:
        for name in group.names:
            assert group.start(name) == "right"


def ask_tagger(replicas: Replicas) -> tuple[int, Any]:
    """Status and answer of a request without a stream; 0 if the connection was lost."""
    tensor = {"name": "tokens", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]}
    url = f"http://{replicas.http_address}/v2/models/tagger/infer"
    try:
        answer = httpx.post(url, json={"inputs": [tensor]}, timeout=SECONDS)
    except httpx.TransportError as error:
        return 0, error
    if answer.status_code != 200:
        return answer.status_code, answer.text
    return 200, np.float32(answer.json()["outputs"][0]["data"])


class Load:
    """What became of the requests of some clients that ask the tagger all the time."""

    def __init__(self) -> None:
        self.answers: list[np.ndarray] = []
        self.failures: list[tuple[int, Any]] = []


@contextmanager
def load(replicas: Replicas, clients: int = 3) -> Iterator[Load]:
    """Requests all the time; it ends once every one of them has come to an end."""
    result = Load()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            status, answer = ask_tagger(replicas)
            if status == 200:
                result.answers.append(answer)
            else:
                result.failures.append((status, answer))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(result.answers) > 10)
        yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


def wait_for(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.1)


def expected_tags(model: nn.Module) -> np.ndarray:
    output: np.ndarray = model(torch.tensor([[1, 2, 3]])).detach().numpy()
    return output.ravel()


def test_requests_spread_and_streams_stay(
    replicas: Replicas, real_models: dict[str, nn.Module]
) -> None:
    before = replicas.tell("answered")
    for _ in range(40):
        status, answer = ask_tagger(replicas)
        assert status == 200
        np.testing.assert_allclose(answer, expected_tags(real_models["tagger"]), atol=1e-5)
    groups = make_sequences(replicas, real_models["stream"])
    start(groups)
    for _ in range(2):
        assert go_on(groups) == {True: 32}
    after = replicas.tell("answered")
    for model, total in (("tagger", 40), ("stream", 3 * 32)):
        shares = [after[replica][model] - before[replica][model] for replica in after]
        assert len(shares) == 2
        assert all(shares)
        assert sum(shares) == total


def test_what_concerns_one_replica_is_refused(replicas: Replicas) -> None:
    for module, address in (
        (triton_http, replicas.http_address),
        (triton_grpc, replicas.grpc_address),
    ):
        client = module.InferenceServerClient(address)
        for call in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="one of several replicas"):
                call("tagger")
        assert client.is_model_ready("tagger")
    answer = httpx.get(f"http://{replicas.http_address}/metrics")
    assert answer.status_code == 501


def test_a_streaming_call_of_many_streams(
    replicas: Replicas, real_models: dict[str, nn.Module]
) -> None:
    """Each stays with its replica, wherever the call is; answers come in the order of the requests."""
    array = np.random.default_rng(0).standard_normal((6, 1, 5, 3)).astype(np.float32)
    answers: list[Any] = []
    all_there = threading.Semaphore(0)

    def note(result: Any, error: Any) -> None:
        answers.append(error or result)
        all_there.release()

    with triton_grpc.InferenceServerClient(replicas.grpc_address) as client:
        client.start_stream(note)
        for step in range(5):
            for stream in range(6):
                tensor = triton_grpc.InferInput("input", [1, 1, 3], "FP32")
                tensor.set_data_from_numpy(np.ascontiguousarray(array[stream, :, step : step + 1]))
                client.async_stream_infer(
                    "stream", [tensor], sequence_id=f"call {stream}", sequence_start=step == 0,
                    request_id=f"{step} {stream}",
                )  # fmt: skip
        for _ in range(30):
            assert all_there.acquire(timeout=SECONDS)
        client.stop_stream()
    assert [str(answer) for answer in answers if isinstance(answer, Exception)] == []
    ids = [answer.get_response().id for answer in answers]
    assert ids == [f"{step} {stream}" for step in range(5) for stream in range(6)]
    for stream in range(6):
        outputs = [answer.as_numpy("output") for answer in answers[stream::6]]
        right = real_models["stream"](torch.from_numpy(array[stream]))[0].detach().numpy()
        np.testing.assert_allclose(np.concatenate(outputs, axis=1), right, atol=1e-5)


def test_more_replicas_and_fewer(replicas: Replicas, real_models: dict[str, nn.Module]) -> None:
    """Streams move, and some of them come back to where their old states are. None goes on from those."""
    groups = make_sequences(replicas, real_models["stream"])
    start(groups)
    for count in (4, 2, 1, 2):
        replicas.tell("scale", count)
        moved = go_on(groups)[False]
        assert moved, f"no stream has moved, with {count} replicas"
        # Once each has begun anew where it now belongs, it stays.
        wait_for(lambda: go_on(groups) == {True: 32})


def test_a_replica_that_is_killed(replicas: Replicas, real_models: dict[str, nn.Module]) -> None:
    groups = make_sequences(replicas, real_models["stream"])
    start(groups)
    with load(replicas) as result:
        replicas.tell("kill_replica")
        outcomes = go_on(groups)
        assert outcomes[False]
        wait_for(lambda: replicas.tell("running") == 2)
        wait_for(lambda: go_on(groups) == {True: 32})
        count = len(result.answers)
        wait_for(lambda: len(result.answers) > count + 10)
    check_load(result, real_models["tagger"])


def check_load(result: Load, model: nn.Module) -> None:
    """Whatever was answered is right, and whatever was not says so."""
    for answer in result.answers:
        np.testing.assert_allclose(answer, expected_tags(model), atol=1e-5)
    for status, text in result.failures:
        assert status in (0, 500, 503), text


def test_a_node_that_is_lost(replicas: Replicas, real_models: dict[str, nn.Module]) -> None:
    groups = make_sequences(replicas, real_models["stream"])
    start(groups)
    with load(replicas) as result:
        replicas.tell("remove_node")
        try:
            go_on(groups)
            wait_for(lambda: replicas.tell("running") == 2)
            wait_for(lambda: go_on(groups) == {True: 32})
            count = len(result.answers)
            wait_for(lambda: len(result.answers) > count + 10)
        finally:
            replicas.tell("add_node")
    check_load(result, real_models["tagger"])


def test_a_record_of_streams_that_is_lost(
    replicas: Replicas, real_models: dict[str, nn.Module]
) -> None:
    groups = make_sequences(replicas, real_models["stream"])
    start(groups)
    replicas.tell("lose_the_record")
    assert go_on(groups) == {False: 32}
    assert go_on(groups) == {True: 32}


def test_a_new_bundle_under_load(
    replicas: Replicas, real_bundles: Path, real_models: dict[str, nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    new = type(real_models["tagger"])().eval()
    export_bundle(new, torch.randint(20, (2, 5)), tmp_path / "tagger", forms=["native"])
    old_tags, new_tags = expected_tags(real_models["tagger"]), expected_tags(new)
    with load(replicas) as result:
        replicas.tell("update", str(tmp_path))
        count = len(result.answers)
        wait_for(lambda: len(result.answers) > count + 10)
    replicas.tell("update", str(real_bundles))
    assert not result.failures
    is_new = [np.allclose(answer, new_tags, atol=1e-5) for answer in result.answers]
    is_old = [np.allclose(answer, old_tags, atol=1e-5) for answer in result.answers]
    assert all(one or other for one, other in zip(is_new, is_old, strict=True))
    assert is_old[0]
    assert all(is_new[-5:])


def test_the_number_follows_the_requests(replicas: Replicas) -> None:
    replicas.tell("scale_by_itself", 1, 3)
    with load(replicas, clients=16):
        wait_for(lambda: replicas.tell("running") == 3)


def test_a_config_file(replicas: Replicas, real_bundles: Path, tmp_path: Path) -> None:
    """Ray's own command deploys it, in place of what is there."""
    file = tmp_path / "serve.yaml"
    command = [RAY_PYTHON, "-m", "deploy_rnn", "serve", str(real_bundles), "--engine", "ray"]
    options = ["--replicas", "2", "--max-rows", "7", "--write-config", str(file)]
    subprocess.run([*command, *options], check=True, timeout=SECONDS)
    replicas.tell("run_config", str(file))
    client = triton_http.InferenceServerClient(replicas.http_address)
    for _ in range(10):
        assert client.get_model_config("tagger")["max_batch_size"] == 7


def test_the_command_stops_and_nothing_is_lost(
    replicas: Replicas, real_models: dict[str, nn.Module]
) -> None:
    with load(replicas) as result:
        assert replicas.tell("stop") == 0
    replicas.tell("start")
    for answer in result.answers:
        np.testing.assert_allclose(answer, expected_tags(real_models["tagger"]), atol=1e-5)
    # Once there is no application, Ray's proxies answer 404.
    assert {status for status, _ in result.failures} <= {404, 503}
    assert ask_tagger(replicas)[0] == 200
