"""Whoever floods the server, others get their turn: requests of one model in their order, models by turns."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling import model as module
from deploy_rnn.serving.scheduling.core_slots import CoreSlots
from deploy_rnn.serving.scheduling.limits import Limits
from deploy_rnn.serving.scheduling.model import Model
from deploy_rnn.serving.scheduling.request import Request
from deploy_rnn.serving.server import Server

MANY = 12
"""Requests of the one who floods."""


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """The engine and the steps of each run, in their order."""
    runs: list[tuple[Any, int]] = []
    real = module.execute

    def execute(engine: Any, batch: Any, get_all_cores: Any) -> Any:
        runs.append((engine, batch[0][0].steps))
        return real(engine, batch, get_all_cores)

    monkeypatch.setattr(module, "execute", execute)
    return runs


def open_model(folder: Path, name: str, cores: CoreSlots) -> Model:
    """A model that runs one row at a time."""
    return Model(folder, name=name, threads=1, limits=Limits(max_rows=1), cores=cores)


def test_a_model_waits_for_one_run_of_another_that_has_many(
    real_bundles: Path, ran: list[tuple[Any, int]]
) -> None:
    cores = CoreSlots(1)
    request = Request({"tokens": np.ones((1, 3), np.int64)})
    with (
        open_model(real_bundles / "tagger", "flooded", cores) as flooded,
        open_model(real_bundles / "tagger", "other", cores) as other,
    ):
        with cores.taken():
            futures = [flooded.submit(request) for _ in range(MANY)]
            wait_until(lambda: len(cores._waiting) == 1)
            futures.append(other.submit(request))
            wait_until(lambda: len(cores._waiting) == 2)
        for future in futures:
            future.result(30)
        assert [engine is other._engine for engine, _ in ran].index(True) == 1


@pytest.fixture
def shared(real_bundles: Path, run_server: Any) -> Iterator[tuple[Server, Repository, CoreSlots]]:
    """A server of one model, which runs one request at a time on its one core."""
    cores = CoreSlots(1)
    folder = real_bundles / "tagger"
    repository = Repository(folder, lambda path, name: open_model(path, name, cores))
    repository.load_all()
    with run_server(repository) as server:
        yield server, repository, cores
    repository.close()


@pytest.mark.parametrize("flooding", ["http", "grpc"])
def test_no_protocol_is_served_before_the_other(
    flooding: str,
    shared: tuple[Server, Repository, CoreSlots],
    ran: list[tuple[Any, int]],
) -> None:
    """One sends many requests, the other one, and then the first many again: they are run in this order."""
    server, repository, cores = shared
    model = repository.model("tagger")

    def ask_over_http(steps: int) -> None:
        tensor = {"name": "tokens", "datatype": "INT64", "shape": [1, steps], "data": [1] * steps}
        answer = http.post("/v2/models/tagger/infer", json={"inputs": [tensor]})
        assert answer.status_code == 200

    def ask_over_grpc(steps: int) -> None:
        tensor = triton_grpc.InferInput("tokens", [1, steps], "INT64")
        tensor.set_data_from_numpy(np.ones((1, steps), np.int64))
        grpc.infer("tagger", [tensor])

    many, one = ask_over_http, ask_over_grpc
    if flooding == "grpc":
        many, one = one, many
    with (
        httpx.Client(base_url=f"http://{server.http_address}", timeout=30) as http,
        triton_grpc.InferenceServerClient(server.grpc_address) as grpc,
        ThreadPoolExecutor(2 * MANY + 1) as pool,
    ):
        with cores.taken():
            futures = [pool.submit(many, 3) for _ in range(MANY)]
            wait_until(lambda: model.statistics().queued == MANY)
            futures.append(pool.submit(one, 5))
            wait_until(lambda: model.statistics().queued == MANY + 1)
            futures += [pool.submit(many, 4) for _ in range(MANY)]
            wait_until(lambda: model.statistics().queued == 2 * MANY + 1)
        for future in futures:
            future.result(30)
    assert [steps for _, steps in ran] == [3] * MANY + [5] + [4] * MANY
