"""A PyTorch model becomes an ONNX graph in which each recurrent stack is still one node."""

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import nn

from deploy_rnn.call import Axes, Call
from deploy_rnn.conversion import replace_layers
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.rnn import RNN

from .stack import CapturedRNN, Stack, stack_nodes

CAPTURED = {nn.RNN: CapturedRNN, RNN: CapturedRNN}

AUTO, DYNAMIC = torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC


def capture(model: nn.Module, call: Call, axes: Sequence[Axes], *, opset_version: int) -> ir.Model:
    """Trace a copy of `model`, in evaluation mode, into ONNX with its recurrent stacks as `deploy_rnn::RNN` nodes.

    `axes`: what is to be dynamic in each of `call.tensors`; these axes have the names that they were given.

    Raises:
        ConversionError: a recurrent layer that cannot be replaced.
        DynamicAxisError: an axis that the model itself fixes.
        ExportError: torch.export or torch.onnx cannot take the model; the cause is theirs.
    """
    captured = replace_layers(copy.deepcopy(model), CAPTURED).eval()
    nameless = [{axis: DYNAMIC if isinstance(dim, str) else dim for axis, dim in asked.items()} for asked in axes]
    with _quiet():
        try:
            program = torch.onnx.export(
                captured,
                call.bound.args,
                kwargs=call.bound.kwargs,
                dynamo=True,
                dynamic_shapes=call.shapes(nameless) if any(axes) else None,
                opset_version=opset_version,
                verbose=False,
            )
        except Exception as error:  # torch raises many types here
            raise _explained(error) from error
    assert program is not None
    graph = program.model.graph
    if len(graph.inputs) != len(axes):
        raise ExportError(
            f"torch.onnx made {len(graph.inputs)} inputs of the example's {len(axes)} tensors "
            f"({', '.join(str(value.name) for value in graph.inputs)})."
        )
    _name_axes(graph, axes)
    return program.model


def _name_axes(graph: ir.Graph, axes: Sequence[Axes]) -> None:
    """Every dynamic axis gets the name that was asked for, wherever its symbol stands."""
    names: dict[str, str] = {}
    for value, asked in zip(graph.inputs, axes, strict=True):
        assert value.shape is not None
        for axis, dim in asked.items():
            size = value.shape[axis]
            if isinstance(size, int):
                if dim is not AUTO:
                    raise _fixed(axis, value.name, size)
            elif isinstance(dim, str) or hasattr(dim, "__name__"):
                names.setdefault(str(size), dim if isinstance(dim, str) else dim.__name__)
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape(_renamed(size, names) for size in value.shape)


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    return re.sub(r"[A-Za-z_]\w*", lambda symbol: names.get(symbol[0], symbol[0]), size.value)


def find_batch_axes(model: nn.Module, call: Call, *, opset_version: int) -> list[Axes]:
    """The batch axis, called "B", of every tensor through which it enters the model, and no other axis.

    The model is traced once with every axis open; the axis that then reaches a recurrent stack as its batch is looked
    up among the inputs.
    """
    every_axis: list[Axes] = [dict.fromkeys(range(tensor.dim()), AUTO) for tensor in call.tensors]
    graph = capture(model, call, every_axis, opset_version=opset_version).graph
    batches = {str(Stack.of(node).batch) for node in stack_nodes(graph)}
    return [
        {
            axis: "B"
            for axis, size in enumerate(value.shape or ())
            if isinstance(size, ir.SymbolicDim) and str(size) in batches
        }
        for value in graph.inputs
    ]


def _explained(error: Exception) -> ExportError:
    """Torch's error in one paragraph: its first cause, and what to do if that is a fixed axis."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    said = str(error).strip()
    fixed = re.findall(r"inferred a static shape of (\d+) for dimension inputs\['(\w+)'\]\.shape\[(\d+)\]", said)
    if fixed:
        size, name, axis = fixed[0]
        return _fixed(axis, name, size)
    return ExportError(f"PyTorch could not export the model: {type(error).__name__}: {said}")


def _fixed(axis: int | str, name: str | None, size: int | str) -> DynamicAxisError:
    return DynamicAxisError(
        f"axis {axis} of `{name}` cannot be dynamic: the model fixes it at {size}; leave it out of `dynamic_shapes`."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.onnx's remarks about itself: optional packages it lacks, and its own deprecated calls."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=UserWarning, message="# The axis name: .* will not be used")
            yield
    finally:
        registration.setLevel(level)
