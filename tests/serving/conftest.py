"""Small bundles, each exported once in a session of tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.export import export_bundle


class Tagger(nn.Module):
    """Tokens (B, T) -> scores (B, T, 3); with lengths where the constructor says so."""

    def __init__(self, family: Any = deploy_rnn.RNN, *, bidirectional: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.rnn = family(8, 16, 2, bidirectional=bidirectional, batch_first=True)
        self.score = nn.Linear(32 if bidirectional else 16, 3)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        scores: Tensor = self.score(self.rnn(self.embed(tokens), None, lengths)[0])
        return scores


@pytest.fixture(scope="session")
def tagger() -> nn.Module:
    torch.manual_seed(1)
    return Tagger().eval()


@pytest.fixture(scope="session")
def padded(tagger: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tagger` with lengths, for any number of steps, for 8 and for 16."""
    folder = tmp_path_factory.mktemp("bundles") / "padded"
    args = (torch.randint(20, (2, 12)), torch.tensor([12, 5]))
    export_bundle(tagger, args, folder, forms=["native"], buckets=[8, 16], sizes=(2,))
    return folder


@pytest.fixture(scope="session")
def exact(tagger: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tagger` without lengths, for any number of steps and for 4."""
    folder = tmp_path_factory.mktemp("bundles") / "exact"
    export_bundle(tagger, (torch.randint(20, (2, 12)),), folder, forms=["native"], buckets=[4], sizes=(2,))
    return folder


@pytest.fixture(scope="session")
def stream_model() -> nn.Module:
    torch.manual_seed(2)
    return Tagger(deploy_rnn.LSTM, bidirectional=False).eval()


@pytest.fixture(scope="session")
def streaming(stream_model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "streaming"
    export_bundle(stream_model, (torch.randint(20, (2, 12)),), folder, forms=["native"], streaming=True, sizes=(2,))
    return folder
