"""The files that every runtime gets: four families, four kinds, every way to write them; and the highlighter."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy_rnn.examples.highlight.model import load
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.forms import FIXED_TIME
from deploy_rnn.export.forms.node_count import MAX_NODES
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.saving import save

STEPS, BATCH, INPUT, HIDDEN, LAYERS = 6, 3, 4, 8, 2

FAMILIES: dict[str, dict[str, Any]] = {
    "tanh": {"layer": nn.RNN},
    "relu": {"layer": nn.RNN, "nonlinearity": "relu"},
    "GRU": {"layer": nn.GRU},
    "LSTM": {"layer": nn.LSTM},
}
KINDS = ("plain", "tagger", "lengths", "streaming")
TOKENS = 20

WAYS: dict[str, dict[str, Any]] = {
    "unrolled": {"form": "unrolled"},
    "scan": {"form": "scan"},
    "native": {"form": "native", "row_ends": "sequence_lens"},
    "native, held": {"form": "native", "row_ends": "held"},
    "unrolled, portable": {"form": "unrolled", "portable": True},
    "scan, portable": {"form": "scan", "portable": True},
    "native, portable": {"form": "native", "portable": True},
}
"""Each way to write a file, and the options of it."""

HIGHLIGHTER_WAYS = ("unrolled", "scan", "native")
HIGHLIGHTER_STEPS = 16


@dataclass(frozen=True)
class File:
    """One file to be run.

    Attributes:
        family: "tanh", "relu", "GRU", "LSTM" or "highlighter".
        kind: "plain" and "lengths" (two layers, bidirectional), "tagger" (tokens -> such layers -> scores, without
            final states), or "streaming" (two layers, states in and out).
        way: a key of `WAYS`.
        model, args, kwargs: what it was exported from.
        path: where it is.
    """

    family: str
    kind: str
    way: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    path: Path

    @property
    def name(self) -> str:
        return self.path.stem


def write_files(folder: Path) -> Iterator[File]:
    """Write each file, not yet compared with anything."""
    for family, options in FAMILIES.items():
        for kind in KINDS:
            torch.manual_seed(0)
            model = _model(kind, **options)
            args = (torch.randn(STEPS, BATCH, INPUT),)
            kwargs: dict[str, Any] | None = None
            if kind == "tagger":
                args = (torch.randint(TOKENS, (BATCH, STEPS)),)
            if kind == "lengths":
                kwargs = {"lengths": torch.tensor([STEPS, 4, 1])}
            captures: dict[Any, CapturedModel] = {}
            for way in WAYS:
                # Where there are no lengths, the two ways to write them are one.
                if way != "native, held" or kind == "lengths":
                    yield _written(folder, family, kind, way, model, args, kwargs, captures)
    model = load().eval()
    args = (torch.randint(64, (BATCH, HIGHLIGHTER_STEPS)),)
    for way in HIGHLIGHTER_WAYS:
        yield _written(folder, "highlighter", "plain", way, model, args, None, {})


class Tagger(nn.Module):
    """tokens (B, T) -> scores (B, T, 3); the final states of the layer are not used."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, INPUT)
        self.layer = layer
        self.score = nn.Linear(2 * HIDDEN, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.score(self.layer(self.embed(tokens))[0])
        return scores


def _model(kind: str, layer: Any, **options: Any) -> nn.Module:
    module: nn.Module = layer(
        INPUT,
        HIDDEN,
        LAYERS,
        bidirectional=kind != "streaming",
        batch_first=kind == "tagger",
        **options,
    )
    if isinstance(module, nn.RNNBase) and kind == "tagger":
        module = Tagger(module)
    return module.eval()


def _written(
    folder: Path,
    family: str,
    kind: str,
    way: str,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    captures: dict[Any, CapturedModel],
) -> File:
    """`captures`: of the same model, by what they depend on."""
    options = dict(WAYS[way])
    form = options.pop("form")
    asked = ExportOptions(streaming=kind == "streaming", **options)
    dynamic_time = form not in FIXED_TIME
    key = (dynamic_time, asked.portable)
    if key not in captures:
        captures[key] = CapturedModel.of(model, args, kwargs, asked, dynamic_time=dynamic_time)
    captured = replace(captures[key], row_ends=asked.row_ends_written)
    path = folder / f"{family}-{kind}-{way.replace(', ', '-')}.onnx"
    save(captured.written(form, max_nodes=MAX_NODES), path)
    return File(family, kind, way, model, args, kwargs, path)
