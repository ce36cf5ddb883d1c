"""A model as the graph of torch.export, with its dynamic axes open; its errors in a sentence."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from deploy_rnn.any_size import AnySize
from deploy_rnn.checking.branches import Condition, conditions_on
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.model_errors import (
    data_dependence,
    first_paragraph,
    ignore_computed_weights,
    leaves_torch,
    nothing_printed_on_error,
    quiet_loggers,
    raising_line,
)
from deploy_rnn.packaging.axes import NO_LIMIT, Axes, Axis
from deploy_rnn.packing.tracing import packing_exported

# A logger that reports what an error says again.
_REMARKS = ("torch.fx.experimental.symbolic_shapes", "torch.utils._sympy.interp")


LARGEST = 2**30
"""Sizes from which on a limit is PyTorch's own, such as that of an index, and not one of the model."""


@dataclass(frozen=True)
class Traced:
    """A model as a graph.

    Attributes:
        program: the graph.
        call: the call that it was traced with.
        axes: the dynamic axes of each tensor of the call, with the ranges for which the graph holds.
        conditions: what is true of their sizes on the sides of the branches that were traced.
    """

    program: ExportedProgram
    call: ExampleCall
    axes: Sequence[Axes]
    conditions: Sequence[Condition]


def trace(model: nn.Module, call: ExampleCall, axes: Sequence[Axes]) -> Traced:
    """Trace `model` with torch.export, `axes` open.

    An axis without a range gets one if the model needs it, as where it takes the last three steps.

    Args:
        model: a converted copy, in evaluation mode.
        call: an example call in which no dynamic axis has the size 1, which PyTorch would take for fixed.

    Raises:
        DynamicAxisError: the model fixes an axis, or does not take all of its range.
        ExportError: PyTorch cannot export the model; the cause is PyTorch's.
    """
    any_size = AnySize(inside=__name__, model=model)
    with explained_errors(any_size):
        try:
            program = _export(model, call, _named_dims(axes), any_size)
        except UserError as error:
            if "Constraints violated" not in str(error):
                raise
            program = _any_range(model, call, axes, any_size, error)
    sizes = _sizes(program, axes)
    conditions = conditions_on(sizes)
    ranges = _ranges(program, call, axes, sizes, conditions)
    return Traced(program, call, [_narrowed(one, ranges) for one in axes], conditions)


def _any_range(
    model: nn.Module,
    call: ExampleCall,
    axes: Sequence[Axes],
    any_size: AnySize,
    error: UserError,
) -> ExportedProgram:
    """Trace a model that does not take every size of an axis, whatever range it needs.

    error: of torch.export, where an axis must have its range; it is raised if the model needs another one.
    """
    hook = model.register_forward_pre_hook(_same_sizes(axes), with_kwargs=True)
    try:
        program = _export(model, call, _hints(axes), any_size)
    except Exception:  # torch raises many types here
        raise error from None
    finally:
        hook.remove()
    sizes = _sizes(program, axes)
    ranges = _ranges(program, call, axes, sizes, conditions_on(sizes))
    for axis in {axis for tensor_axes in axes for axis in tensor_axes.values()}:
        if axis.name not in sizes or (axis.has_range and ranges[axis.name] != axis):
            raise error
    return program


def _same_sizes(axes: Sequence[Axes]) -> Callable[..., None]:
    """A hook that tells torch.export which axes have one name, and so one size."""

    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        first_sizes: dict[str, Any] = {}
        for tensor, tensor_axes in zip(tensors, axes, strict=True):
            for number, axis in tensor_axes.items():
                size = tensor.size(number)
                torch._check(first_sizes.setdefault(axis.name, size) == size)

    return hook


def _narrowed(axes: Axes, ranges: Mapping[str, Axis]) -> Axes:
    return {number: ranges.get(axis.name, axis) for number, axis in axes.items()}


def _ranges(
    program: ExportedProgram,
    call: ExampleCall,
    axes: Sequence[Axes],
    sizes: Mapping[str, torch.SymInt],
    conditions: Sequence[Condition],
) -> dict[str, Axis]:
    """Name of each dynamic axis -> the axis, with the range for which the graph holds."""
    ranges: dict[str, Axis] = {}
    for tensor, tensor_axes in zip(call.tensors, axes, strict=True):
        for number, axis in tensor_axes.items():
            if axis.name not in sizes or axis.name in ranges:
                continue
            bounds = program.range_constraints.get(sizes[axis.name].node.expr)
            if bounds is not None:
                axis = _within(axis, int(bounds.lower), int(min(bounds.upper, NO_LIMIT)))
            for condition in conditions:
                limits = None
                if condition.names == {axis.name}:
                    limits = condition.size_range(tensor.size(number))
                if limits is not None:
                    axis = _within(axis, limits.least, limits.most or NO_LIMIT)
            ranges[axis.name] = axis
    return ranges


def _within(axis: Axis, least: int, most: int) -> Axis:
    """An axis with the sizes of its own range that are in another one.

    torch.export takes no axis for one of size 1, and so does not tell 1 and 2 apart.
    """
    if least > 2:
        axis = replace(axis, least=max(axis.least, least))
    if most < LARGEST:
        axis = replace(axis, most=min(axis.most, most))
    return axis


@contextmanager
def explained_errors(any_size: AnySize | None = None) -> Iterator[None]:
    """Run what PyTorch does with a graph: its errors become an ExportError, its remarks are left out."""
    with catch_warnings(), torch.no_grad():
        # PyTorch's own calls of its own deprecated functions.
        simplefilter("ignore", DeprecationWarning)
        simplefilter("ignore", FutureWarning)
        ignore_computed_weights()
        try:
            with nothing_printed_on_error(), quiet_loggers(_REMARKS):
                yield
        except Exception as error:  # torch raises many types here
            why_fixed = any_size.why_fixed if any_size is not None else ""
            raise _format_error(error, why_fixed) from error


def _export(
    model: nn.Module, call: ExampleCall, dims: Sequence[Mapping[int, Any]], any_size: AnySize
) -> ExportedProgram:
    """Trace `model` with `torch.export`; `dims`: of each tensor, those of its dynamic axes."""
    shapes = call.shapes([dict(tensor_dims) for tensor_dims in dims])
    with packing_exported(model), any_size, any_size.known.of_buffers(model):
        return torch.export.export(
            model, call.bound.args, call.bound.kwargs, dynamic_shapes=shapes, strict=False
        )


def _named_dims(axes: Sequence[Axes]) -> list[dict[int, Any]]:
    """Axes of one name are one size, and must have all of their range."""
    dims: dict[Axis, Any] = {}
    tensor_dims = []
    for tensor_axes in axes:
        for axis in tensor_axes.values():
            if axis not in dims:
                dims[axis] = Dim(axis.name, min=axis.least, max=_most(axis))
        tensor_dims.append({number: dims[axis] for number, axis in tensor_axes.items()})
    return tensor_dims


def _hints(axes: Sequence[Axes]) -> list[dict[int, Any]]:
    """Axes may turn out to have a smaller range."""
    return [
        {
            number: Dim.DYNAMIC(min=max(axis.least, 2), max=_most(axis))
            for number, axis in tensor_axes.items()
        }
        for tensor_axes in axes
    ]


def _most(axis: Axis) -> int | None:
    return axis.most if axis.most < NO_LIMIT else None


def _sizes(program: ExportedProgram, axes: Sequence[Axes]) -> dict[str, torch.SymInt]:
    """Name of each dynamic axis -> its size in the traced graph."""
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    tensors = [value for value in values if isinstance(value, Tensor)]
    sizes: dict[str, torch.SymInt] = {}
    for tensor, tensor_axes in zip(tensors, axes, strict=True):
        for number, axis in tensor_axes.items():
            size = tensor.size(number)
            # A size that the model fixes is an int, whatever its type says.
            if isinstance(size, torch.SymInt):
                sizes[axis.name] = size
    return sizes


def _format_error(error: Exception, why_fixed: str) -> ExportError:
    """Torch's error in a sentence, for the errors that users are likely to meet.

    why_fixed: to follow that the model fixes an axis; it may be empty.
    """
    text = str(error).strip()
    if "C++ compiler" in text:
        return ExportError(
            "a .pt2 file needs a C++ compiler, such as g++, and none was found; write a .pt file instead."
        )
    fixed_axis = re.search(
        r"marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", text
    )
    if fixed_axis:
        reason = (
            f"`{fixed_axis[1]}` cannot be dynamic: the model fixes it at {fixed_axis[2]}{why_fixed}"
        )
        return DynamicAxisError(
            f"{reason}; leave it out of `dynamic_shapes`.",
            reason,
        )
    if "Constraints violated" in text:
        suggested_lines = re.findall(r"^  (\w+ = .*)$", text, re.MULTILINE)
        suggestion = "; ".join(suggested_lines) or text
        reason = "an axis has sizes that the compiled model would not take"
        return DynamicAxisError(
            f"{reason}; torch.export suggests `{suggestion}`. Give that range in `dynamic_shapes`, or leave the axis "
            "out.",
            reason,
        )
    if "PackedSequence" in text and "TreeSpec" in text:
        return ExportError(
            "the model returns a PackedSequence, which no file does; return what pad_packed_sequence makes of it."
        )
    unnamed = re.search(
        r"(?:namedtuple class|serialization name for) <class '(?:[\w.<>]+\.)?(\w+)'>", text
    )
    if unnamed:
        return ExportError(
            f"the model returns a tuple of type `{unnamed[1]}`, which a .pt2 file does not; let `forward` return a "
            "plain tuple of its tensors, or write a .pt file."
        )
    line = raising_line(error)
    if isinstance(error, ExportError):
        return ExportError(f"{line}: {error}" if line else text)
    cause = data_dependence(error) or leaves_torch(error)
    if cause:
        return ExportError(f"{line}: {cause}" if line else cause)
    start = f"{line}: PyTorch cannot compile this" if line else "PyTorch cannot compile the model"
    return ExportError(f"{start}: {first_paragraph(error)}")
