"""A `.pt` file: the model scripted and frozen by TorchScript."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy_rnn.errors import ExportError


def script_file(model: nn.Module, path: Path) -> None:
    """Script `model`, a converted copy in evaluation mode, and freeze its weights into a `.pt` file.

    Raises:
        ExportError: TorchScript cannot compile the model's code; the cause is TorchScript's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit announces its own end
        try:
            torch.jit.freeze(torch.jit.script(model)).save(str(path))
        except Exception as error:  # torch.jit raises many types here
            text = str(error).strip()
            first_line = text.partition("\n")[0].rstrip(".:")
            raise ExportError(
                f"TorchScript cannot compile {type(model).__name__}: {first_line}. Write a .pt2 file instead, "
                f"which takes any code that torch.export does. TorchScript says: {text}"
            ) from error


def load_file(path: Path) -> Callable[..., Any]:
    """Load the function in a `.pt` file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded: Callable[..., Any] = torch.jit.load(str(path))
    return loaded
