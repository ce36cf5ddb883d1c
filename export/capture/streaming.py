"""Streaming: the states of every stack are inputs and outputs, so that a sequence can come in chunks.

A forward direction at step t needs the states of t-1 and nothing later: fed with the states that the chunk before gave,
it computes what the whole sequence would. A reverse direction needs the end of the sequence first.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir
from torch import nn

from deploy_rnn.errors import ExportError
from deploy_rnn.nn.recurrent import is_recurrent

from ..metadata import FileMetadata
from ..stack import FIRST_STATE, Stack, layer_path, stack_nodes


def check_can_stream(model: nn.Module) -> None:
    """Raises: ExportError: a layer that needs the end of the sequence."""
    for name, layer in model.named_modules():
        if is_recurrent(layer) and layer.bidirectional:
            raise ExportError(
                f"`{name or 'model'}` is bidirectional, and cannot stream: its reverse direction starts at the last "
                "step, which the first chunk does not have. Export the whole sequence, without `streaming`."
            )


def open_states(graph: ir.Graph, metadata: FileMetadata, time_axes: Callable[[], Sequence[int | None]]) -> FileMetadata:
    """Let every state be an input and an output of the graph; those that it lacks come last, named after the layer.

    Raises:
        ExportError: rows of different length, or a first state that the model computes.
    """
    if metadata.lengths:
        raise ExportError("a streaming file has no `lengths`: every row of a chunk goes on; leave them out.")
    time = {str(value.name): axis for value, axis in zip(graph.inputs, time_axes(), strict=True) if axis is not None}
    states: dict[str, str] = {}
    for node in stack_nodes(graph):
        path = f"{layer_path(node)}." if layer_path(node) else ""
        for kind, name in enumerate(Stack.of(node).state_names):
            first, last = _first(graph, node, kind, f"{path}{name}0"), node.outputs[1 + kind]
            if not last.is_graph_output():
                last.name = _free(graph, f"{path}{name}_n")
                graph.outputs.append(last)
            states[str(first.name)] = str(last.name)
    return replace(metadata, states=states, time=time)


def _first(graph: ir.Graph, node: ir.Node, kind: int, name: str) -> ir.Value:
    """The input of the graph that is this state of a stack at its start; made if the stack starts with zeros."""
    slot = FIRST_STATE + kind
    given, last = node.inputs[slot], node.outputs[1 + kind]
    if given is None or _is_zeros(given):
        made = ir.Value(name=_free(graph, name), type=last.type, shape=last.shape)
        graph.inputs.append(made)
        node.replace_input_with(slot, made)
        return made
    if not given.is_graph_input():
        raise ExportError(
            f"the first state of `{layer_path(node) or 'the layer'}` is computed by the model, so that a chunk cannot "
            "go on where the one before ended; let the model take it as an argument, or start with zeros."
        )
    return given


def _is_zeros(value: ir.Value) -> bool:
    """Whether it is 0 all over, whatever its shape."""
    if value.const_value is not None:
        return not value.const_value.numpy().any()
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type == "ConstantOfShape":
        filled = producer.attributes.get("value")
        return filled is None or not filled.as_tensor().numpy().any()
    source = producer.inputs[0] if producer.op_type in _SAME_VALUES else None
    return source is not None and _is_zeros(source)


_SAME_VALUES = frozenset({"Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def _free(graph: ir.Graph, name: str) -> str:
    """`name`, or with a number if the graph's inputs and outputs have it."""
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
    return next(each for each in names if each not in taken)
