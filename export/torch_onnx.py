"""Trace a PyTorch module into ONNX operators: `torch.onnx.export` without its remarks, its errors in one paragraph."""

import importlib.util
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import nn
from torch.utils import _pytree as pytree

from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.model_errors import (
    data_dependence,
    first_paragraph,
    ignore_computed_weights,
    leaves_torch,
    line_in_text,
    nothing_printed_on_error,
    quiet_loggers,
    raising_line,
)
from deploy_rnn.tensor_spec import size_of

from .size_limits import SizeLimits
from .translations import TRANSLATIONS

AUTO = torch.export.Dim.AUTO
DYNAMIC = torch.export.Dim.DYNAMIC

# Loggers that report optional packages and what was not folded, on every export, and what an error says again.
_REMARKS = (
    "torch.onnx._internal.exporter._registration",
    "onnxscript.optimizer._constant_folding",
    "torch.onnx._internal.exporter._core",
    "onnx_ir.passes.common.initializer_deduplication",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils._sympy.interp",
    "onnx_ir._convenience",
)


class Traced(NamedTuple):
    """A module as ONNX, and the sizes of its dynamic axes for which that holds."""

    model: ir.Model
    limits: SizeLimits


def hide_folder_named_triton() -> None:
    """Let a folder `triton` on Python's path, such as a repository of models, not pass for the package of that name.

    PyTorch would find that it can be imported, and then import from it.
    """
    found = sys.modules.get("triton")
    spec = importlib.util.find_spec("triton") if found is None else found.__spec__
    if spec is not None and spec.origin is None:
        sys.modules["triton"] = None  # type: ignore[assignment]


def trace(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    *,
    opset_version: int,
) -> Traced:
    """Run `torch.onnx.export(dynamo=True)` on a module, in the mode that it is in; functions are inlined.

    Raises:
        DynamicAxisError: an axis that the module itself fixes.
        ExportError: torch.export or torch.onnx cannot take it; the cause is theirs.
    """
    hide_folder_named_triton()
    if args and isinstance(args[-1], dict) and not kwargs:
        # Or torch.onnx would take the last argument for the keywords.
        args = (*args, {})

    def export(*, optimize: bool) -> torch.onnx.ONNXProgram | None:
        return torch.onnx.export(
            module,
            args,
            kwargs=dict(kwargs),
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            opset_version=opset_version,
            verbose=False,
            optimize=optimize,
            custom_translation_table=dict(TRANSLATIONS),
        )

    # A file computes no gradients, and PyTorch would look for those of a loop.
    with _quiet(), torch.no_grad(), _any_convolution():
        try:
            with nothing_printed_on_error():
                program = export(optimize=True)
        except Exception as error:  # torch raises many types here
            if not _is_folding(error):
                raise _format_error(error) from error
            # For a chunk of an axis of unknown size in a loop it looks for a number in vain (onnxscript 0.7).
            program = export(optimize=False)
    assert program is not None
    common.InlinePass()(program.model)
    _write_fixed_sizes(program)
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    examples = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return Traced(program.model, SizeLimits.of(program, examples))


@contextmanager
def _any_convolution() -> Iterator[None]:
    """Note no limits of PyTorch's kernels for convolutions: which it would take depends on the batch (oneDNN's for 16
    rows or more), and torch.onnx asks that again for what is in the step of a loop."""
    select = torch._C._select_conv_backend

    def selected(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes: list[Any] = list(input.shape)
        for size in sizes:
            if isinstance(size, torch.SymInt):
                with size.node.shape_env.suppress_guards():
                    return select(input, *args, **kwargs)
        return select(input, *args, **kwargs)

    with mock.patch.object(torch._C, "_select_conv_backend", selected):
        yield


def _is_folding(error: BaseException | None) -> bool:
    """Whether the optimizer that torch.onnx calls stopped while it folded constants."""
    while error is not None:
        if "Error during constant folding" in str(error):
            return True
        error = error.__cause__
    return False


def _write_fixed_sizes(program: torch.onnx.ONNXProgram) -> None:
    """Replace symbols that can have one value only: an axis left to `AUTO` that the model fixes has such a symbol."""
    assert program.exported_program is not None
    ranges = program.exported_program.range_constraints
    fixed_sizes = {
        str(symbol): int(limits.lower)
        for symbol, limits in ranges.items()
        if limits.lower == limits.upper
    }
    fix_sizes(program.model.graph, fixed_sizes)


def fix_sizes(graph: ir.Graph, sizes: Mapping[str, int]) -> None:
    """Replace these symbols by their sizes, everywhere in a graph."""
    inner_values = [output for node in graph for output in node.outputs]
    for value in [*graph.inputs, *inner_values]:
        if value.shape is not None:
            value.shape = ir.Shape(_fixed(size, sizes) for size in value.shape)


def _fixed(size: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    if isinstance(size, int) or size.value is None:
        return size
    number = size_of(size.value, sizes)
    return size if number is None else number


def fixed_axis(axis: int | str, name: str | None, size: int | str) -> DynamicAxisError:
    """The error for an axis that is not dynamic although it was requested."""
    reason = f"axis {axis} of `{name}` cannot be dynamic: the model fixes it at {size}"
    return DynamicAxisError(f"{reason}; leave it out of `dynamic_shapes`.", reason)


def _format_error(error: Exception) -> ExportError:
    """The line of the model's code, torch's first cause in one paragraph, and what to do where that is known."""
    line = raising_line(error) or _translated_line(error)
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    message = str(error).strip()
    # Raised by a layer of ours while it was traced.
    if isinstance(error, ExportError):
        return ExportError(message)
    static = re.search(
        r"inferred a static shape of (\d+) for dimension inputs\['(\w+)'\]\.shape\[(\d+)\]", message
    )
    if static is not None:
        size, name, axis = static.groups()
        return fixed_axis(axis, name, size)
    start = f"{line}: " if line else ""
    cause = first_paragraph(error)
    dependence = data_dependence(error)
    if dependence:
        return ExportError(f"{start}{dependence}")
    operator = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", message)
    if operator is not None:
        return ExportError(
            f"{start}ONNX has no operator for `{operator[1]}`, and torch.onnx does not write it with others; compute "
            "this in another way, or outside of the model."
        )
    left = leaves_torch(error)
    if left:
        return ExportError(f"{start}{left}")
    if line:
        return ExportError(f"{line}: PyTorch cannot export this: {cause}")
    return ExportError(f"PyTorch could not export the model: {cause}")


def _translated_line(error: BaseException | None) -> str | None:
    """The line of the model's code that became the node at which torch.onnx stopped; None if it did not stop at one."""
    line = None
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, torch.fx.Node) and node.stack_trace:
                line = line_in_text(node.stack_trace) or line
        error = error.__cause__
    return line


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.onnx's remarks about itself: optional packages, what it did not fold, deprecated calls."""
    with quiet_loggers(_REMARKS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
        warnings.filterwarnings(
            "ignore", category=UserWarning, message="# The axis name: .* will not be used"
        )
        ignore_computed_weights()
        yield
