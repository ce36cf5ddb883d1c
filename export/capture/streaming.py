"""Streaming: the states of every stack are inputs and outputs, so that a sequence can come in chunks.

A forward direction at step t needs the states of t-1 and nothing later: fed with the states that the chunk before gave,
it computes what the whole sequence would. A reverse direction needs the end of the sequence first.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from torch import nn

from deploy_rnn.errors import ExportError
from deploy_rnn.nn.recurrent import is_recurrent

from ..stack import FIRST_FINAL, FIRST_STATE, Stack, layer_path, stack_nodes


def check_can_stream(model: nn.Module) -> None:
    """Raises: ExportError: a layer that needs the end of the sequence."""
    for name, layer in model.named_modules():
        if is_recurrent(layer) and layer.bidirectional:
            raise ExportError(
                f"`{name or 'model'}` is bidirectional, and cannot stream: its reverse direction starts at the last "
                "step, which the first chunk does not have. Export the whole sequence, without `streaming`."
            )


def refuse_lengths(lengths: Mapping[str, Any]) -> None:
    """Raises: ExportError: rows of different length."""
    if lengths:
        raise ExportError(
            "a streaming file has no `lengths`: every row of a chunk goes on; leave them out."
        )


def open_states(graph: ir.Graph) -> dict[str, str]:
    """Make every state an input and an output of the graph; new ones come last, named after the layer.

    Returns:
        The name of each input that is a state -> the output that is the same state after the chunk.

    Raises:
        ExportError: a first state that the model computes.
    """
    states: dict[str, str] = {}
    for node in stack_nodes(graph):
        path = layer_path(node)
        scope = f"{path}." if path else ""
        for number, state_name in enumerate(Stack.of(node).state_names):
            first = _first_state(graph, node, number, f"{scope}{state_name}0")
            final = node.outputs[FIRST_FINAL + number]
            if not final.is_graph_output():
                final.name = _free_name(graph, f"{scope}{state_name}_n")
                graph.outputs.append(final)
            states[str(first.name)] = str(final.name)
    return states


def _first_state(graph: ir.Graph, node: ir.Node, number: int, name: str) -> ir.Value:
    """The input of the graph that is this state of a stack at its start; a new one if the stack starts with zeros."""
    slot = FIRST_STATE + number
    state = node.inputs[slot]
    if state is None or _is_zeros(state):
        final = node.outputs[FIRST_FINAL + number]
        new_input = ir.Value(name=_free_name(graph, name), type=final.type, shape=final.shape)
        graph.inputs.append(new_input)
        node.replace_input_with(slot, new_input)
        return new_input
    if not state.is_graph_input():
        raise ExportError(
            f"the first state of `{layer_path(node) or 'the layer'}` is computed by the model, so that a chunk cannot "
            "go on where the one before ended; let the model take it as an argument, or start with zeros."
        )
    return state


def _is_zeros(value: ir.Value) -> bool:
    """Whether every element is 0, for any shape."""
    if value.const_value is not None:
        return not value.const_value.numpy().any()
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type == "ConstantOfShape":
        element = producer.attributes.get("value")
        return element is None or not element.as_tensor().numpy().any()
    if producer.op_type not in _SAME_VALUES:
        return False
    source = producer.inputs[0]
    return source is not None and _is_zeros(source)


_SAME_VALUES = frozenset(
    {"Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)


def _free_name(graph: ir.Graph, name: str) -> str:
    """`name`, or with a number behind it if an input or output of the graph has it."""
    used_names = {value.name for value in (*graph.inputs, *graph.outputs)}
    free_name = name
    numbers = itertools.count(1)
    while free_name in used_names:
        free_name = f"{name}_{next(numbers)}"
    return free_name
