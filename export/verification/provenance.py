"""Where a report comes from: when, on which machine, with which versions, about which model."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import nn

from deploy_rnn import __version__
from deploy_rnn.runtime import usable_cores


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
    return f"{_processor()}, {cores} core{plural}, {platform.system()} {platform.machine()}"


def _processor() -> str:
    """The name of the processor, as far as the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _describe_model(model: nn.Module) -> str:
    """Such as "Tagger with rnn: RNN(32, 64, num_layers=2); 21,833 weights"."""
    layers = []
    for path, module in model.named_modules():
        # By name: a layer of deploy_rnn, or a subclass of a layer of torch.nn, is one too.
        if hasattr(module, "hidden_size") and hasattr(module, "num_layers"):
            layers.append(f"{path}: {module}" if path else str(module))
    weights = f"{sum(weight.numel() for weight in model.parameters()):,} weights"
    name = type(model).__name__
    if not layers or str(model) in layers:
        return f"{layers[0] if layers else name}; {weights}"
    return f"{name} with {', '.join(layers)}; {weights}"
