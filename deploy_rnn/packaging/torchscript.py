"""A `.pt` file: the model scripted and frozen by TorchScript."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit._recursive import concrete_type_store

from deploy_rnn.errors import ExportError
from deploy_rnn.model_errors import first_paragraph, line_in_text


def script_file(model: nn.Module, path: Path) -> None:
    """Script `model`, a converted copy in evaluation mode, and freeze its weights into a `.pt` file.

    Raises:
        ExportError: TorchScript cannot compile the model's code; the cause is TorchScript's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit announces its own end
        _forget_unfinished_types(model)
        try:
            frozen = torch.jit.freeze(torch.jit.script(model))
        except Exception as error:  # torch.jit raises many types here
            line = line_in_text(str(error))
            start = f"{line}: " if line else ""
            # The rest quotes the code around that line.
            quoted = str(error).strip().partition('\n  File "')[0].rstrip(".:\n ")
            reason = " ".join(quoted.split())
            raise ExportError(
                f"{start}TorchScript cannot compile {type(model).__name__}: {reason}. Write a .pt2 file instead, "
                "which takes any code that torch.export does."
            ) from error
        try:
            frozen.save(str(path))
        except RuntimeError as error:
            raise ExportError(
                f"the file cannot be written; is there enough space? PyTorch says: {first_paragraph(error)}"
            ) from error


def _forget_unfinished_types(model: nn.Module) -> None:
    """Let TorchScript begin again with the classes of `model` that it once failed to compile in this process.

    It would go on where it stopped, and say of any such class that its `forward` cannot be defined again.
    """
    for module in model.modules():
        types = concrete_type_store.type_store.get(type(module), [])
        types[:] = [known for known in types if known in concrete_type_store.methods_compiled]


def load_file(path: Path) -> Callable[..., Any]:
    """Load the function in a `.pt` file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded: Callable[..., Any] = torch.jit.load(str(path))
    return loaded
