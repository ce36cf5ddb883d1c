"""A PyTorch model becomes an ONNX graph in which each recurrent stack is still one node."""

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir
from torch import nn

from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.conversion import convert
from deploy_rnn.errors import ExportError
from deploy_rnn.nn.recurrent import Recurrent

from ..stack import Stack, SymbolicRecurrence, name_layers, stack_nodes
from ..torch_onnx import AUTO, DYNAMIC, fixed_axis, trace
from .packing import Packing


def capture(model: nn.Module, call: ExampleCall, axes: Sequence[Axes], *, opset_version: int) -> ir.Model:
    """Trace a copy of `model`, in evaluation mode, into ONNX with its stacks as `deploy_rnn::Recurrent` nodes.

    `axes`: what is to be dynamic in each of `call.tensors`; these axes have the names that they were given.

    Raises:
        ConversionError: a recurrent layer that cannot be replaced.
        DynamicAxisError: an axis that the model itself fixes.
        ExportError: torch.export or torch.onnx cannot take the model; the cause is theirs.
    """
    converted = convert(model).eval()
    layers = {name: module for name, module in converted.named_modules() if isinstance(module, Recurrent)}
    packing = Packing()
    for number, layer in enumerate(layers.values()):
        layer.recurrence = SymbolicRecurrence(number, packing)
    nameless = [{axis: DYNAMIC if isinstance(dim, str) else dim for axis, dim in asked.items()} for asked in axes]
    with packing.installed():
        captured = trace(
            converted,
            call.bound.args,
            call.bound.kwargs,
            call.shapes(nameless) if any(axes) else None,
            opset_version=opset_version,
        )
    graph = captured.graph
    if len(graph.inputs) != len(axes):
        raise ExportError(
            f"torch.onnx made {len(graph.inputs)} inputs of the example's {len(axes)} tensors "
            f"({', '.join(str(value.name) for value in graph.inputs)})."
        )
    name_layers(graph, layers)
    _name_axes(graph, axes)
    return captured


def _name_axes(graph: ir.Graph, axes: Sequence[Axes]) -> None:
    """Every dynamic axis gets the name that was asked for, wherever its symbol stands."""
    names: dict[str, str] = {}
    for value, asked in zip(graph.inputs, axes, strict=True):
        assert value.shape is not None
        for axis, dim in asked.items():
            size = value.shape[axis]
            if isinstance(size, int):
                if dim is not AUTO:
                    raise fixed_axis(axis, value.name, size)
            elif isinstance(dim, str) or hasattr(dim, "__name__"):
                names.setdefault(str(size), dim if isinstance(dim, str) else dim.__name__)
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape(_renamed(size, names) for size in value.shape)


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    return re.sub(r"[A-Za-z_]\w*", lambda symbol: names.get(symbol[0], symbol[0]), size.value)


def find_axes(model: nn.Module, call: ExampleCall, *, time: bool, opset_version: int) -> list[Axes]:
    """The axes through which the batch of the recurrent layers enters the model, called "B", and with `time` those of
    their steps, called "T" ("T1", ... if there are several), and no other axis.

    The model is traced once with every axis open; the axes that then reach a recurrent stack are looked up among the
    inputs.
    """
    every_axis: list[Axes] = [dict.fromkeys(range(tensor.dim()), AUTO) for tensor in call.tensors]
    graph = capture(model, call, every_axis, opset_version=opset_version).graph
    stacks = [Stack.of(node) for node in stack_nodes(graph)]
    names = {str(stack.batch): "B" for stack in stacks}
    if time:
        for number, steps in enumerate(dict.fromkeys(str(stack.steps) for stack in stacks)):
            names.setdefault(steps, f"T{number or ''}")
    return [
        {
            axis: names[str(size)]
            for axis, size in enumerate(value.shape or ())
            if isinstance(size, ir.SymbolicDim) and str(size) in names
        }
        for value in graph.inputs
    ]
