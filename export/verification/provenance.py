"""Where a report comes from: when, on which machine, with which versions, about which model."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime

import onnx
import onnxruntime
import torch
from torch import nn

from deploy_rnn import __version__
from deploy_rnn.nn.recurrent import Recurrent
from deploy_rnn.runtime import processor_name, usable_cores


@dataclass(frozen=True)
class Provenance:
    """What one needs to know to repeat a check.

    Attributes:
        date: when it ended, in UTC, as ISO 8601 has it: "2026-11-26T07:25:15+00:00".
        machine: processor, number of cores that it could use, operating system.
        versions: of deploy-rnn, python, torch, onnx and onnxruntime.
        model: the class of the PyTorch model, its recurrent layers, and how many weights it has.
    """

    date: str
    machine: str
    versions: dict[str, str]
    model: str

    @classmethod
    def of(cls, model: nn.Module) -> "Provenance":
        """Now, here."""
        return cls(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=_describe_machine(),
            versions={
                "deploy-rnn": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
            model=_describe_model(model),
        )


def _describe_machine() -> str:
    cores = usable_cores()
    plural = "" if cores == 1 else "s"
    processor = processor_name() or "unknown processor"
    return f"{processor}, {cores} core{plural}, {platform.system()} {platform.machine()}"


def _describe_model(model: nn.Module) -> str:
    """Such as "Tagger with rnn: RNN(32, 64), 2 layers; 21,833 weights"."""
    name = getattr(model, "original_name", type(model).__name__)  # of a scripted module
    layers = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.RNNBase, Recurrent)):
            layers[path] = _describe_layer(module)
    weights = sum(weight.numel() for weight in model.parameters())
    if "" in layers:
        return f"{layers['']}; {weights:,} weights"
    inner = "; ".join(f"{path}: {layer}" for path, layer in layers.items())
    return f"{name}{f' with {inner}' if inner else ''}; {weights:,} weights"


def _describe_layer(layer: nn.RNNBase | Recurrent) -> str:
    """Not by its repr, which a subclass may have made its own."""
    parts = [f"{type(layer).__name__}({layer.input_size}, {layer.hidden_size})"]
    if layer.num_layers > 1:
        parts.append(f"{layer.num_layers} layers")
    if layer.bidirectional:
        parts.append("bidirectional")
    return ", ".join(parts)
