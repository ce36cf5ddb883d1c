"""A `.pt` file: the model, or its graph, scripted and frozen by TorchScript."""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit._recursive import concrete_type_store

from deploy_rnn.checking.branches import Condition
from deploy_rnn.errors import ExportError
from deploy_rnn.model_errors import first_paragraph, line_in_text
from deploy_rnn.packaging.script_program import scripted_program
from deploy_rnn.packaging.tracing import Traced

METADATA = "deploy_rnn.json"
"""The name, within a `.pt` file, of what it says about itself; `torch.jit.load` reads it as an extra file."""

_MISFIT = re.compile(
    r"^\s*(?P<function>[\w:.]+)\((?P<signature>.*)\) -> .*:\n"
    r"\s*Expected a value of type '(?P<expected>.+)' for argument '(?P<argument>\w+)' "
    r"but instead found type '(?P<found>.+)'",
    re.MULTILINE,
)
"""What TorchScript says of each variant of a function that does not take the arguments of a call."""


def scripted(model: nn.Module) -> torch.jit.ScriptModule:
    """Script `model`, a converted copy in evaluation mode, and freeze its weights.

    Raises:
        ExportError: TorchScript cannot compile the model's code; the cause is TorchScript's.
    """
    with _quiet():
        _forget_unfinished_types(model)
        _let_lightning_be_scripted(model)
        try:
            frozen: torch.jit.ScriptModule = torch.jit.freeze(torch.jit.script(model))
        except Exception as error:  # torch.jit raises many types here
            line = line_in_text(str(error))
            start = f"{line}: " if line else ""
            reason = _reason(error)
            what = type(model).__name__
            # TorchScript names no line of the model where a module of torch.nn, or the class of a module, is refused.
            if not line:
                what = _failing_part(model, reason) or what
            raise ExportError(f"{start}TorchScript cannot compile {what}: {reason}.") from error
        return frozen


def scripted_graph(traced: Traced, conditions: Sequence[Condition] = ()) -> torch.jit.ScriptModule:
    """Script the graph of torch.export, and freeze its weights; it refuses sizes without the `conditions`.

    Raises:
        ExportError: TorchScript does not have an operator, or a type of argument; the cause is TorchScript's.
    """
    with _quiet():
        try:
            module = scripted_program(traced.program, traced.call, traced.axes, conditions)
            frozen: torch.jit.ScriptModule = torch.jit.freeze(module)
        except RuntimeError as error:  # TorchScript's own
            raise ExportError(f"TorchScript cannot compile the graph: {_reason(error)}.") from error
        return frozen


def write_file(module: torch.jit.ScriptModule, path: Path, about: Mapping[str, Any]) -> None:
    """Save a `.pt` file, with what it says about itself as JSON.

    Raises:
        ExportError: the file cannot be written.
    """
    try:
        module.save(str(path), _extra_files={METADATA: json.dumps(about)})
    except RuntimeError as error:
        raise ExportError(
            f"the file cannot be written; is there enough space? PyTorch says: {first_paragraph(error)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit")  # which announces its own end
        yield


def _forget_unfinished_types(model: nn.Module) -> None:
    """Let TorchScript begin again with the classes of `model` that it once failed to compile in this process.

    It would go on where it stopped, and say of any such class that its `forward` cannot be defined again.
    """
    for module in model.modules():
        types = concrete_type_store.type_store.get(type(module), [])
        types[:] = [known for known in types if known in concrete_type_store.methods_compiled]


def _let_lightning_be_scripted(model: nn.Module) -> None:
    """Set what Lightning's own `to_torchscript` sets: without a trainer, a property of its modules raises otherwise."""
    for part in model.modules():
        if hasattr(part, "_jit_is_scripting"):
            vars(part)["_jit_is_scripting"] = True


def _reason(error: Exception) -> str:
    """What TorchScript says, without the code that it quotes; a list of variants is said in a few words."""
    quoted = str(error).strip().partition('\n  File "')[0]
    misfits = list(_MISFIT.finditer(quoted))
    if not misfits:
        return " ".join(quoted.split()).removesuffix(" at").rstrip(".: ")
    # Arguments are compared from the first to the last: the variants that fit best have a complaint of the last.
    furthest = max(_position(misfit) for misfit in misfits)
    nearest = [misfit for misfit in misfits if _position(misfit) == furthest]
    expected = dict.fromkeys(misfit["expected"] for misfit in nearest)
    first = nearest[0]
    function = first["function"].removeprefix("aten::").partition(".")[0]
    return f"`{first['argument']}` of `{function}` must be {' or '.join(expected)}, got {first['found']}"


def _position(misfit: re.Match[str]) -> int:
    """Which argument of its function a misfit is about, from 0."""
    before = re.split(rf"\b{misfit['argument']}\b", misfit["signature"])[0]
    return before.count(",")


def _failing_part(model: nn.Module, reason: str) -> str:
    """The innermost module within `model` that TorchScript refuses for the same reason, in words; empty if none."""
    path = ""
    part = model
    while True:
        for name, child in part.named_children():
            if _script_reason(child) == reason:
                path = f"{path}.{name}" if path else name
                part = child
                break
        else:
            return f"`{path}`, a {type(part).__name__}" if path else ""


def _script_reason(module: nn.Module) -> str:
    """Why TorchScript refuses a module by itself; empty if it does not."""
    _forget_unfinished_types(module)
    try:
        torch.jit.script(module)
    except Exception as error:  # torch.jit raises many types here
        return _reason(error)
    return ""


def load_file(path: Path) -> Callable[..., Any]:
    """Load the function in a `.pt` file."""
    with _quiet():
        loaded: Callable[..., Any] = torch.jit.load(str(path))
    return loaded
