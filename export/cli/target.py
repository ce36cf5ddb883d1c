"""What the command line calls a TARGET: a function that returns a model and example arguments, or a weights file."""

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from deploy_rnn.errors import TargetError
from deploy_rnn.model_errors import first_paragraph, raising_line

from .weights import SUFFIXES, example, read_layer

RETURNS = "return `(model, args)` or `(model, args, kwargs)`, such as `return model, (torch.zeros(50, 4, 16),)`"


@dataclass(frozen=True)
class Target:
    """A model and an example call, as `export_onnx` and `verify` take them.

    Attributes:
        model: the model.
        args, kwargs: the arguments of the example call.
        shown_as: where the model came from, and what it is.
    """

    model: nn.Module
    args: Any
    kwargs: Mapping[str, Any] | None
    shown_as: str


def load_target(target: str, **options: Any) -> Target:
    """Load the model and the example of a TARGET.

    Args:
        target: "package.module:factory", or a weights file, recognised by its suffix (.safetensors, .pt, .pth, .bin,
            .ckpt).
        options: for a weights file only, as for `from_weights`.

    Raises:
        TargetError: the target does not exist, fails, or is something else.
    """
    if Path(target).suffix in SUFFIXES:
        return from_weights(Path(target), **options)
    if not re.fullmatch(r"[^:/\\]+:[^:/\\]+", target):
        raise TargetError(
            f"`TARGET` (={target!r}) must be `package.module:factory` or a weights file ({', '.join(SUFFIXES)})."
        )
    module, _, attribute = target.partition(":")
    if module.endswith(".py"):
        raise TargetError(
            f"`TARGET` (={target!r}) must name a module without .py: `{module.removesuffix('.py')}:{attribute}`."
        )
    if options:
        flags = ["--" + name.replace("_", "-") for name in options]
        raise TargetError(
            f"{', '.join(flags)}: only for a weights file; `{target}` returns its own model and example."
        )
    return from_factory(target)


def from_weights(
    path: Path,
    *,
    key: str | None = None,
    nonlinearity: str | None = None,
    batch_first: bool = False,
    steps: int = 32,
    batch: int = 2,
    lengths: bool = False,
) -> Target:
    """Load a recurrent layer from its weights, with random example arguments.

    Args:
        path: the file; see `read_layer`.
        key: the path of the layer in the file; see `read_layer`.
        nonlinearity, batch_first: what the file does not contain; see `read_layer`.
        steps, batch: T and B of the example.
        lengths: whether the layer is also called with the lengths of the rows.
    """
    layer = read_layer(path, key=key, nonlinearity=nonlinearity, batch_first=batch_first)
    args, kwargs = example(layer, steps=steps, batch=batch, lengths=lengths)
    assumptions = [f"batch_first={batch_first} (--batch-first)"]
    if isinstance(layer, nn.RNN):
        assumptions.insert(0, f"{layer.nonlinearity} (--nonlinearity)")
    first_weight = next(layer.parameters())
    dtype = str(first_weight.dtype).removeprefix("torch.")
    place = f"{path}, {key}" if key else str(path)
    shown_as = (
        f"{place}: {layer}, {dtype}; not in the file, and so assumed: {', '.join(assumptions)}"
    )
    return Target(layer, args, kwargs, shown_as)


def from_factory(name: str) -> Target:
    """Import "package.module:factory", also from the current folder, and call it without arguments."""
    module_name, _, attribute = name.partition(":")
    factory = _get_factory(_import_module(module_name), attribute)
    try:
        result = factory()
    except (Exception, SystemExit) as error:
        raise TargetError(f"`{name}` raised {_format_error(error)}") from error
    model, args, kwargs = _check_result(name, result)
    return Target(model, args, kwargs, f"{name}: {type(model).__name__}")


def _import_module(name: str) -> ModuleType:
    folder = str(Path.cwd())
    # As with `python -m`. It stays there, since a model may import more when it runs.
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        # The module itself or a package around it is missing, not something that it imports.
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise TargetError(
                f"there is no module `{error.name}`, neither in the current folder ({folder}) nor on Python's path; "
                "change to the folder that contains it, or install it."
            ) from None
        raise TargetError(f"importing `{name}` raised {_format_error(error)}") from error


def _get_factory(module: ModuleType, attribute: str) -> Callable[[], Any]:
    factory = getattr(module, attribute, None)
    if factory is None:
        # Suggest what the module itself defines, not what it imports.
        members = vars(module).items()
        own_names = [
            name for name, value in members if getattr(value, "__module__", None) == module.__name__
        ]
        contents = ", ".join(own_names[:10]) or "no function"
        raise TargetError(
            f"module `{module.__name__}` ({module.__file__}) has no `{attribute}`; it defines {contents}."
        )
    # A model can be called, but is not a function that returns one.
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TargetError(
            f"`{module.__name__}:{attribute}` is {_describe_type(factory)}, not a function; "
            f"name a function without arguments, and {RETURNS}."
        )
    checked: Callable[[], Any] = factory
    return checked


def _check_result(name: str, result: Any) -> tuple[Any, Any, Mapping[str, Any] | None]:
    """Return model, args and kwargs.

    Raises:
        TargetError: a factory that returned anything else.
    """
    if not isinstance(result, (tuple, list)):
        raise TargetError(f"`{name}` returned {_describe_type(result)}; {RETURNS}.")
    if len(result) not in (2, 3):
        raise TargetError(
            f"`{name}` returned a {type(result).__name__} of length {len(result)}; {RETURNS}."
        )
    model, args, kwargs = (*result, None)[:3]
    # `verify` takes a program; every other command says what it takes.
    if not isinstance(model, (nn.Module, ExportedProgram)):
        raise TargetError(
            f"`{name}` returned {_describe_type(model)} as the model, not a torch.nn.Module; {RETURNS}."
        )
    if not isinstance(args, (tuple, list, Tensor)):
        raise TargetError(
            f"`{name}` returned {_describe_type(args)} as the arguments, not a tuple; {RETURNS}."
        )
    if not isinstance(kwargs, (Mapping, type(None))):
        raise TargetError(
            f"`{name}` returned {_describe_type(kwargs)} as `kwargs`, not a dict; {RETURNS}."
        )
    return model, args, kwargs


def _format_error(error: BaseException) -> str:
    """The error and the line that raised it: the command line shows no traceback."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})."
    line = raising_line(error)
    return f"{first_paragraph(error)} ({line})." if line else f"{first_paragraph(error)}."


def _describe_type(value: Any) -> str:
    return f"an object of type {type(value).__name__}"
