"""What the command line calls a TARGET: a function that gives a model and example arguments, or a weights file."""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from deploy_rnn.errors import TargetError

from .weights import SUFFIXES, example, read_layer

RETURNS = "return `(model, args)` or `(model, args, kwargs)`, such as `return model, (torch.zeros(50, 4, 16),)`"


@dataclass(frozen=True)
class Target:
    """A model and an example call, as `export_onnx` and `verify` take them.

    Attributes:
        shown_as: where it came from, and what it is.
    """

    model: nn.Module
    args: Any
    kwargs: Mapping[str, Any] | None
    shown_as: str


def load_target(target: str, **options: Any) -> Target:
    """The model and the example of a TARGET.

    Args:
        target: "package.module:factory", or a weights file by its suffix (.safetensors, .pt, .pth, .bin).
        options: for a weights file only, as for `from_weights`.

    Raises:
        TargetError: there is no such thing, it fails, or it gives something else.
    """
    if Path(target).suffix in SUFFIXES:
        return from_weights(Path(target), **options)
    if not re.fullmatch(r"[^:/\\]+:[^:/\\]+", target):
        raise TargetError(
            f"`TARGET` (={target!r}) is neither `package.module:factory` nor a weights file "
            f"({', '.join(SUFFIXES)}): give one of these."
        )
    if options:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise TargetError(f"{given}: only for a weights file; `{target}` gives a model and an example of its own.")
    return from_factory(target)


def from_weights(
    path: Path,
    *,
    nonlinearity: str | None = None,
    batch_first: bool = False,
    steps: int = 32,
    batch: int = 2,
    lengths: bool = False,
) -> Target:
    """A bare layer from its weights, and random example arguments.

    Args:
        path: the file; see `read_layer`.
        nonlinearity, batch_first: what the file does not say; see `read_layer`.
        steps, batch: T and B of the example.
        lengths: whether rows have lengths of their own.
    """
    layer = read_layer(path, nonlinearity=nonlinearity, batch_first=batch_first)
    args, kwargs = example(layer, steps=steps, batch=batch, lengths=lengths)
    unsaid = [f"{layer.nonlinearity} (--nonlinearity)"] if isinstance(layer, nn.RNN) else []
    unsaid.append(f"batch_first={batch_first} (--batch-first)")
    dtype = str(next(layer.parameters()).dtype).removeprefix("torch.")
    shown_as = f"{path}: {layer}, {dtype}; the file does not say, and so it is read with {', '.join(unsaid)}"
    return Target(layer, args, kwargs, shown_as)


def from_factory(name: str) -> Target:
    """Import "package.module:factory", also from the current folder, and call it without arguments."""
    where, _, attribute = name.partition(":")
    module = _imported(where)
    factory = _found(module, attribute)
    try:
        given = factory()
    except (Exception, SystemExit) as error:
        raise TargetError(f"`{name}` raised {_format_error(error)}") from error
    model, args, kwargs = _checked(name, given)
    return Target(model, args, kwargs, f"{name}: {type(model).__name__}")


def _imported(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python -m` has it; left there, since models import when they run, too
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise TargetError(
                f"there is no module `{error.name}`, neither in the current folder ({folder}) nor on Python's path; "
                "go to the folder that holds it, or install it."
            ) from None
        raise TargetError(f"importing `{name}` raised {_format_error(error)}") from error


def _found(module: ModuleType, attribute: str) -> Callable[[], Any]:
    found = getattr(module, attribute, None)
    if found is None:
        own = [each for each, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        has = f"it defines {', '.join(own[:10])}" if own else "it defines no function"
        raise TargetError(f"module `{module.__name__}` ({module.__file__}) has no `{attribute}`; {has}.")
    if isinstance(found, nn.Module) or not callable(found):
        raise TargetError(
            f"`{module.__name__}:{attribute}` is {_kind(found)}, not a function; "
            f"name a function without arguments, and {RETURNS}."
        )
    factory: Callable[[], Any] = found
    return factory


def _checked(name: str, given: Any) -> tuple[nn.Module, Any, Mapping[str, Any] | None]:
    if not isinstance(given, (tuple, list)):
        raise TargetError(f"`{name}` returned {_kind(given)}; {RETURNS}.")
    if len(given) not in (2, 3):
        raise TargetError(f"`{name}` returned {len(given)} things; {RETURNS}.")
    model, args, kwargs = (*given, None)[:3]
    if not isinstance(model, nn.Module):
        raise TargetError(f"`{name}` returned {_kind(model)} as the model, no torch.nn.Module; {RETURNS}.")
    if not isinstance(args, (tuple, list, Tensor)):
        raise TargetError(f"`{name}` returned {_kind(args)} as the arguments, no tuple; {RETURNS}.")
    if not isinstance(kwargs, (Mapping, type(None))):
        raise TargetError(f"`{name}` returned {_kind(kwargs)} as `kwargs`, no dict; {RETURNS}.")
    return model, args, kwargs


def _format_error(error: BaseException) -> str:
    """The error and the line that it came from: there is no traceback on the command line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{last.filename}, line {last.lineno}"
    if isinstance(error, SyntaxError) and error.filename:
        where, error = f"{error.filename}, line {error.lineno}", type(error)(error.msg)
    return f"{type(error).__name__}: {error} ({where})."


def _kind(value: Any) -> str:
    return f"an object of type {type(value).__name__}"
