"""A real Triton and our server, each with the same two models: `whole` and `stream`, a GRU (B, T, 3) -> (B, T, 4)."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.serving.contestants import run_triton_on
from deploy_rnn.export import export_bundle
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling.limits import Limits
from deploy_rnn.serving.scheduling.model import Model
from deploy_rnn.serving.settings import Settings
from tests.serving.triton.addresses import Addresses

MODELS = Path(__file__).with_name("models")
IDLE_SECONDS = 1.0
"""Of a sequence; as in models/stream/config.pbtxt."""


class Whole(nn.Module):
    """input (B, T, 3) -> output (B, T, 4)."""

    def __init__(self, layer: nn.GRU) -> None:
        super().__init__()
        self.rnn = layer

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.rnn(input)[0]
        return output


@pytest.fixture(scope="session")
def layer() -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(3, 4, batch_first=True).eval()


@pytest.fixture(scope="session")
def bundles(layer: nn.GRU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    x = torch.randn(2, 5, 3)
    export_bundle(Whole(layer).eval(), x, folder / "whole", forms=["native"], sizes=(2,))
    export_bundle(layer, x, folder / "stream", forms=["native"], streaming=True, sizes=(2,))
    return folder


@pytest.fixture(scope="session")
def triton_venv() -> Path:
    """The environment of Triton; `make triton` makes it, and says where it is."""
    return Path(os.environ.get("TRITON_VENV", "build/triton-tests-venv"))


@pytest.fixture(scope="session")
def triton(
    bundles: Path, triton_venv: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Addresses]:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    shutil.copytree(MODELS, repository)
    for name in ("whole", "stream"):
        shutil.copytree(bundles / name, repository / name / "1" / "bundle")
    with run_triton_on(repository, triton_venv) as running:
        yield Addresses(*(f"127.0.0.1:{running.ports[name]}" for name in ("http", "grpc")))


@pytest.fixture(scope="session")
def ours(bundles: Path, run_server: Any) -> Iterator[Addresses]:
    limits = Limits(stream_idle=IDLE_SECONDS)

    def open_model(path: Path, name: str) -> Model:
        return Model(path, name=name, threads=1, limits=limits)

    repository = Repository(bundles, open_model, limits=limits)
    repository.load_all()
    with run_server(repository, Settings()) as server:
        yield Addresses(server.http_address, server.grpc_address)
    repository.close(10)
