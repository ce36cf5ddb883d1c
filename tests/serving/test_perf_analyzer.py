"""NVIDIA's perf_analyzer, the real one, against a server: `make perf-analyzer` installs it and runs these tests."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.export import export_bundle
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling.model import Model
from deploy_rnn.serving.server import Server

PERF_ANALYZER = os.environ.get("PERF_ANALYZER", "perf_analyzer")

pytestmark = pytest.mark.perf_analyzer


class Weighted(nn.Module):
    """x (B, T, 3) and weight (B,) -> score (B,): inputs and outputs without an axis beside that of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        score: Tensor = self.rnn(x)[0].sum((1, 2)) * weight
        return score


@pytest.fixture(scope="module")
def repository(
    real_bundles: Path, padded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("perf_analyzer")
    for bundle in (real_bundles / "tagger", real_bundles / "stream", padded):
        shutil.copytree(bundle, folder / bundle.name)
    weighted = Weighted().eval()
    args = (torch.randn(2, 5, 3), torch.randn(2))
    export_bundle(weighted, args, folder / "weighted", forms=["native"], sizes=(2,))
    repository = Repository(folder, lambda path, name: Model(path, name=name))
    repository.load_all()
    yield repository
    repository.close(10)


@pytest.fixture(scope="module")
def server(repository: Repository, run_server: Any) -> Iterator[Server]:
    with run_server(repository) as server:
        yield server


@pytest.fixture
def options(request: pytest.FixtureRequest, server: Server) -> list[str]:
    """Those for the protocol that a test gets."""
    if request.param == "http":
        return ["-u", server.http_address]
    grpc = ["-i", "grpc", "-u", server.grpc_address]
    return grpc if request.param == "grpc" else [*grpc, "--streaming"]


def measure(model: str, *options: str) -> None:
    """Run it for three short windows, whose figures may differ as they like."""
    windows = ["-p", "100", "-r", "3", "-s", "999", "--max-threads", "2"]
    command = [PERF_ANALYZER, "-m", model, *windows, *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "throughput:" in finished.stdout


@pytest.fixture(autouse=True)
def nothing_fails(repository: Repository) -> Iterator[None]:
    yield
    for model in repository.models():
        assert not model.statistics().failures, model.name


def protocols(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("options", names, indirect=True)


@protocols("http")
def test_zeros(options: list[str]) -> None:
    measure("tagger", "-z", "--shape", "tokens:7", "-b", "2", *options)


@protocols("grpc")
def test_random_numbers(options: list[str]) -> None:
    measure("weighted", "--shape", "x:5,3", "-b", "4", *options)


@protocols("http", "grpc")
def test_lengths(options: list[str], tmp_path: Path) -> None:
    long = {"tokens": {"content": [1, 2, 3, 4], "shape": [4]}, "lengths": [3]}
    short = {"tokens": {"content": [5, 6], "shape": [2]}, "lengths": [2]}
    measure("padded", "--input-data", write(tmp_path, [long, short]), *options)


@protocols("http")
def test_lengths_that_are_left_out(options: list[str], tmp_path: Path) -> None:
    row = {"tokens": {"content": [1, 2, 3, 4], "shape": [4]}}
    measure("padded", "--input-data", write(tmp_path, [row]), *options)


@protocols("http", "grpc", "streaming")
def test_sequences(options: list[str]) -> None:
    measure("stream", "--shape", "input:6,3", "--concurrency-range", "3", *options)


def write(folder: Path, data: list[dict[str, Any]]) -> str:
    path = folder / "data.json"
    path.write_text(json.dumps({"data": data}), encoding="utf-8")
    return str(path)
