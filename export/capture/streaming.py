"""Streaming: the states of every stack are inputs and outputs, so that a sequence can come in chunks.

A forward direction at step t needs the states of t-1 and nothing later: fed with the states that the chunk before gave,
it computes what the whole sequence would. A reverse direction needs the end of the sequence first.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch import nn

from deploy_rnn.checking.example_call import Axes
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


@dataclass(frozen=True)
class _Carried:
    """A state of one stack.

    Attributes:
        node: the stack.
        name: such as "encoder.rnn.h".
        first: what the stack starts with.
        last: the same state after the last step.
    """

    node: ir.Node
    name: str
    first: ir.Value
    last: ir.Value


def open_states(graph: ir.Graph) -> dict[str, str]:
    """Make every state an input and an output of the graph; new ones come last, named after the layer.

    A model may carry several states in one tensor: each stack gets its part of the input, and an output joins what they
    end with. Whether the output has the parts where the input has them is for the check in chunks to tell.

    Returns:
        The name of each input that is a state -> the output that is the same state after the chunk.

    Raises:
        ExportError: there is no state of a layer; a first state that the model computes; or an input of states that no
            output gives back.
    """
    if not stack_nodes(graph):
        raise ExportError(
            "`streaming` opens the states of recurrent layers, and the model has none, but loops of deploy_rnn.scan: "
            "let it take the first states as arguments and return the last ones, and export without `streaming`."
        )
    carried_by: dict[ir.Value, list[_Carried]] = {}
    for node in stack_nodes(graph):
        path = layer_path(node)
        scope = f"{path}." if path else ""
        for number, state_name in enumerate(Stack.of(node).state_names):
            name = f"{scope}{state_name}"
            first = _first_state(graph, node, number, f"{name}0")
            carried = _Carried(node, name, first, node.outputs[FIRST_FINAL + number])
            for origin in _origins(first):
                carried_by.setdefault(origin, []).append(carried)
    lasts: dict[ir.Value, ir.Value] = {}
    for state, carried_states in carried_by.items():
        if [carried.first for carried in carried_states] == [state]:
            lasts[state] = _last_state(graph, carried_states[0])
        else:
            lasts[state] = _joined_state(graph, state, carried_states, used=lasts.values())
    return {str(state.name): str(last.name) for state, last in lasts.items()}


def _first_state(graph: ir.Graph, node: ir.Node, number: int, name: str) -> ir.Value:
    """This state of a stack at its start: an input of the graph or a part of some; a new one in place of zeros.

    Raises:
        ExportError: it is computed from anything else.
    """
    slot = FIRST_STATE + number
    state = node.inputs[slot]
    origins = [] if state is None else _origins(state)
    if state is None or all(map(_is_zeros, origins)):
        last = node.outputs[FIRST_FINAL + number]
        new_input = ir.Value(name=_free_name(graph, name), type=last.type, shape=last.shape)
        graph.inputs.append(new_input)
        node.replace_input_with(slot, new_input)
        return new_input
    if not all(origin.is_graph_input() for origin in origins):
        raise ExportError(
            f"the first state of `{layer_path(node) or 'the layer'}` is computed by the model, so that a chunk cannot "
            "go on where the one before ended; let the model take it as an argument, or start with zeros."
        )
    return state


def _last_state(graph: ir.Graph, carried: _Carried) -> ir.Value:
    """What a stack ends with, as an output of the graph."""
    last = carried.last
    if not last.is_graph_output():
        last.name = _free_name(graph, f"{carried.name}_n")
        graph.outputs.append(last)
    return last


def _joined_state(
    graph: ir.Graph, state: ir.Value, carried_states: Sequence[_Carried], used: Iterable[ir.Value]
) -> ir.Value:
    """The output that is like `state`, and has what exactly those stacks end with which start with parts of it.

    Raises:
        ExportError: there is none.
    """
    all_lasts = {last for node in stack_nodes(graph) for last in node.outputs[FIRST_FINAL:]}
    lasts = {carried.last for carried in carried_states}
    for output in graph.outputs:
        is_alike = (output.dtype, output.shape) == (state.dtype, state.shape)
        if is_alike and output not in used and all_lasts.intersection(_origins(output)) == lasts:
            return output
    paths = dict.fromkeys(f"`{layer_path(carried.node)}`" for carried in carried_states)
    raise ExportError(
        f"parts of `{state.name}` are the first states of {' and '.join(paths)}, and no output of its shape has the "
        "last ones, so that a chunk cannot go on where the one before ended; let the model return them joined, as the "
        "argument that has the first ones."
    )


def _origins(value: ir.Value) -> list[ir.Value]:
    """What the elements of a value come from, unchanged, in its order: it is cut out of them, reshaped, joined."""
    origins: dict[ir.Value, None] = {}
    seen = {value}
    waiting = [value]
    while waiting:
        current = waiting.pop()
        sources = _moved(current.producer())
        if not sources:
            origins[current] = None
        new_sources = [source for source in sources if source not in seen]
        seen.update(new_sources)
        waiting += reversed(new_sources)
    return list(origins)


def _moved(node: ir.Node | None) -> list[ir.Value]:
    """The inputs of a node whose elements it moves and does not change; none for a node that computes."""
    if node is None or node.domain:
        return []
    if node.op_type in _JOINING:
        numbers = list(_JOINING[node.op_type] or range(len(node.inputs)))
    else:
        numbers = [0] if node.op_type in _MOVING else []
    inputs = [node.inputs[number] for number in numbers]
    return [value for value in inputs if value is not None]


_MOVING = frozenset(
    {
        "Cast",
        "Expand",
        "Gather",
        "Identity",
        "Reshape",
        "SequenceAt",
        "Slice",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)

# Which inputs are joined; () for all. Assigning to a part of a tensor is a scatter.
_JOINING = {"Concat": (), "ScatterElements": (0, 2), "ScatterND": (0, 2)}


def _is_zeros(value: ir.Value) -> bool:
    """Whether every element of a value that is not moved from another is 0, for any shape."""
    if value.const_value is not None:
        return not value.const_value.numpy().any()
    producer = value.producer()
    if producer is None or producer.op_type != "ConstantOfShape":
        return False
    element = producer.attributes.get("value")
    return element is None or not element.as_tensor().numpy().any()


def _free_name(graph: ir.Graph, name: str) -> str:
    """`name`, or with a number behind it if an input or output of the graph has it."""
    used_names = {value.name for value in (*graph.inputs, *graph.outputs)}
    free_name = name
    numbers = itertools.count(1)
    while free_name in used_names:
        free_name = f"{name}_{next(numbers)}"
    return free_name


def time_axes(graph: ir.Graph, axes: Sequence[Axes]) -> dict[str, int]:
    """The inputs of the graph -> which of their axes is the steps."""
    time: dict[str, int] = {}
    for value, tensor_axes in zip(graph.inputs, axes, strict=True):
        for axis, name in tensor_axes.items():
            if name.startswith("T"):
                time.setdefault(str(value.name), axis)
    return time
