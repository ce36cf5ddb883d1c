"""A model as the graph of torch.export, with its dynamic axes open; its errors in a sentence."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from deploy_rnn.any_size import AnySize
from deploy_rnn.checking.branches import Condition, conditions_on
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.model_errors import (
    data_dependence,
    first_paragraph,
    nothing_printed_on_error,
    quiet_loggers,
    raising_line,
)
from deploy_rnn.packaging.axes import NO_LIMIT, Axes, Axis
from deploy_rnn.packing.tracing import packing_exported

# A logger that reports what an error says again.
_REMARKS = ("torch.fx.experimental.symbolic_shapes",)


@dataclass(frozen=True)
class Traced:
    """A model as a graph.

    Attributes:
        program: the graph.
        call: the call that it was traced with.
        axes: the dynamic axes of each tensor of the call.
        conditions: what is true of their sizes on the sides of the branches that were traced. If that is about one axis
            alone, PyTorch refuses the model.
    """

    program: ExportedProgram
    call: ExampleCall
    axes: Sequence[Axes]
    conditions: Sequence[Condition]


def trace(model: nn.Module, call: ExampleCall, axes: Sequence[Axes]) -> Traced:
    """Trace `model` with torch.export, `axes` open.

    Args:
        model: a converted copy, in evaluation mode.
        call: an example call in which no dynamic axis has the size 1, which PyTorch would take for fixed.

    Raises:
        DynamicAxisError: the model fixes an axis, or does not take all of its sizes.
        ExportError: PyTorch cannot export the model; the cause is PyTorch's.
    """
    any_size = AnySize(inside=__name__)
    with explained_errors(any_size):
        program = _export(model, call, axes, any_size)
    return Traced(program, call, axes, conditions_on(_sizes(program, axes)))


@contextmanager
def explained_errors(any_size: AnySize | None = None) -> Iterator[None]:
    """Run what PyTorch does with a graph: its errors become an ExportError, its remarks are left out."""
    with catch_warnings(), torch.no_grad():
        # PyTorch's own calls of its own deprecated functions.
        simplefilter("ignore", DeprecationWarning)
        simplefilter("ignore", FutureWarning)
        try:
            with nothing_printed_on_error(), quiet_loggers(_REMARKS):
                yield
        except Exception as error:  # torch raises many types here
            why_fixed = any_size.why_fixed if any_size is not None else ""
            raise _format_error(error, why_fixed) from error


def _export(
    model: nn.Module, call: ExampleCall, axes: Sequence[Axes], any_size: AnySize
) -> ExportedProgram:
    """Trace `model` with `torch.export`, `axes` open."""
    dims: dict[Axis, Dim] = {}
    tensor_dims = []
    for tensor_axes in axes:
        for axis in tensor_axes.values():
            if axis not in dims:
                dims[axis] = _dim(axis)
        tensor_dims.append({number: dims[axis] for number, axis in tensor_axes.items()})
    shapes = call.shapes(tensor_dims)
    with packing_exported(model), any_size, any_size.known.of_buffers(model):
        return torch.export.export(
            model, call.bound.args, call.bound.kwargs, dynamic_shapes=shapes, strict=False
        )


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


def _dim(axis: Axis) -> Dim:
    most = axis.most if axis.most < NO_LIMIT else None
    return Dim(axis.name, min=axis.least, max=most)


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
    line = raising_line(error)
    if isinstance(error, ExportError):
        return ExportError(f"{line}: {error}" if line else text)
    dependence = data_dependence(error)
    if dependence:
        return ExportError(f"{line}: {dependence}" if line else dependence)
    start = f"{line}: PyTorch cannot compile this" if line else "PyTorch cannot compile the model"
    return ExportError(f"{start}: {first_paragraph(error)}")
