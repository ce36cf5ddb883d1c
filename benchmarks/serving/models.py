"""The models that are served, each as a bundle, and the traffic for it with PyTorch's answers.

- highlight: the trained highlighter, an embedding and a bidirectional nn.RNN of two layers with 128 units; rows of
  unlike length may share a run, since it takes lengths.
- whole: the same without lengths, so that only rows of like length may share a run.
- small, large: the same layers with 64 and 192 units, untrained; three models at once are these and highlight.
- tiny: 8 units and rows of 20 steps at most, for what a server does besides running its model.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.serving.traffic import Traffic, draw_rows
from deploy_rnn.examples.highlight.model import ALPHABET, Highlighter, load
from deploy_rnn.export import export_bundle

SYMBOLS = 2 + len(ALPHABET)
LONGEST = 200
TINY_LONGEST = 20
ROWS = 256
"""Different requests for a model; they are sent again and again."""


@dataclass(frozen=True)
class Served:
    """A model as every contestant serves it.

    Attributes:
        name: its name at the server.
        bundle: native.onnx is the fastest graph for one row, scan.onnx for several.
        traffic: a file of `Traffic`.
    """

    name: str
    bundle: Path
    traffic: Path


class WithoutLengths(nn.Module):
    """A highlighter that takes characters and nothing else."""

    def __init__(self, highlighter: Highlighter) -> None:
        super().__init__()
        self.highlighter = highlighter

    def forward(self, characters: Tensor) -> Tensor:
        scores: Tensor = self.highlighter(characters)
        return scores


def make_model(name: str) -> nn.Module:
    """The model of a name, in evaluation mode; the same weights in every run."""
    torch.manual_seed(0)
    model: nn.Module
    if name == "highlight":
        model = load()
    elif name == "whole":
        model = WithoutLengths(load())
    elif name == "tiny":
        model = Highlighter(embedding=4, hidden=8, layers=1, dropout=0)
    else:
        model = Highlighter(hidden={"small": 64, "large": 192}[name])
    return model.eval()


def prepare(name: str, folder: Path) -> Served:
    """Export a model to `folder`, and have PyTorch answer its requests, unless an earlier run did so."""
    served = Served(name, folder / name, folder / f"{name}.npz")
    if served.traffic.exists():
        return served
    model = make_model(name)
    args: tuple[Tensor, ...] = (torch.randint(SYMBOLS, (2, 64)),)
    if name != "whole":
        args = (*args, torch.tensor([64, 20]))
    export_bundle(model, args, served.bundle, forms=["scan", "native"], sizes=(2,))
    longest = TINY_LONGEST if name == "tiny" else LONGEST
    rows = draw_rows(ROWS, longest, SYMBOLS)
    with torch.no_grad():
        answers = [model(torch.from_numpy(row)).numpy() for row in rows]
    Traffic(name, rows, answers).save(served.traffic)
    return served
