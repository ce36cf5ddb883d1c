"""A PyTorch module becomes ONNX operators, without the remarks of `torch.onnx`, and with errors in one paragraph."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import nn

from deploy_rnn.errors import DynamicAxisError, ExportError

AUTO, DYNAMIC = torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC


def trace(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any, *, opset_version: int
) -> ir.Model:
    """`torch.onnx.export(dynamo=True)` of a module in the mode that it has, without functions.

    Raises:
        DynamicAxisError: an axis that the module itself fixes.
        ExportError: torch.export or torch.onnx cannot take it; the cause is theirs.
    """
    if args and isinstance(args[-1], dict) and not kwargs:
        args = (*args, {})  # or torch.onnx would take the last argument for the keywords
    with _quiet():
        try:
            program = torch.onnx.export(
                module,
                args,
                kwargs=dict(kwargs),
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                opset_version=opset_version,
                verbose=False,
            )
        except Exception as error:  # torch raises many types here
            raise _format_error(error) from error
    assert program is not None
    common.InlinePass()(program.model)
    _write_fixed_sizes(program)
    return program.model


def _write_fixed_sizes(program: torch.onnx.ONNXProgram) -> None:
    """An input's axis left to `AUTO` that the model fixes is still a symbol, with a range of one number."""
    assert program.exported_program is not None
    ranges = program.exported_program.range_constraints
    fixed = {str(symbol): int(each.lower) for symbol, each in ranges.items() if each.lower == each.upper}
    for value in program.model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(fixed.get(str(size), size) for size in value.shape)


def fixed_axis(axis: int | str, name: str | None, size: int | str) -> DynamicAxisError:
    """An axis that was to be dynamic and is not."""
    return DynamicAxisError(
        f"axis {axis} of `{name}` cannot be dynamic: the model fixes it at {size}; leave it out of `dynamic_shapes`."
    )


def _format_error(error: Exception) -> ExportError:
    """Torch's error in one paragraph: its first cause, and what to do if that is a fixed axis."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    said = str(error).strip()
    if isinstance(error, ExportError):
        return ExportError(said)
    fixed = re.findall(r"inferred a static shape of (\d+) for dimension inputs\['(\w+)'\]\.shape\[(\d+)\]", said)
    if fixed:
        size, name, axis = fixed[0]
        return fixed_axis(axis, name, size)
    first = said.partition("\n\n")[0]
    return ExportError(f"PyTorch could not export the model: {type(error).__name__}: {first}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.onnx's remarks about itself: optional packages it lacks, what it did not fold, old calls."""
    loggers = [logging.getLogger(name) for name in _REMARKS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=UserWarning, message="# The axis name: .* will not be used")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_REMARKS = ("torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding")
