"""The graph of a bundle as Triton's onnxruntime backend runs it: every tensor batch-first, states by names that it
pairs."""

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from deploy_rnn.bundle import WEIGHTS
from deploy_rnn.metadata import PREFIX
from deploy_rnn.serving.engine.signature import Layout, Signature

from ..saving import save
from ..shared_weights import SharedWeights
from .config import State, names_of

MODEL_FILE = "model.onnx"
"""What the backend looks for."""


def name_states(signature: Signature) -> list[State]:
    """Names for the states, and what they are.

    The backend pairs inputs and outputs of states in the order of their names, and takes a name for another that it
    begins with. These sort alike, and none begins with another.
    """
    digits = len(str(len(signature.states)))
    taken = {tensor.name for tensor in signature.tensors}
    stem = "state"
    while any(name.startswith(stem) for name in taken):
        stem = f"carried_{stem}"
    tensors = {tensor.name: tensor for tensor in signature.client_inputs}
    states = []
    for number, (state_input, state_output) in enumerate(signature.states.items()):
        name = f"{stem}_{number:0{digits}}"
        state = State(f"{name}_in", f"{name}_out", state_input, state_output, tensors[state_input])
        states.append(state)
    return states


def write_graph(source: Path, signature: Signature, states: Sequence[State], folder: Path) -> None:
    """Write `model.onnx` and its weights to `folder`, from the graph at `source`."""
    model = ir.load(source)
    for value in list(model.graph.inputs):
        _put_input_batch_first(model.graph, value, signature)
    for value in list(model.graph.outputs):
        _put_output_batch_first(model.graph, value, signature)
    names = names_of(states)
    for value in (*model.graph.inputs, *model.graph.outputs):
        name = str(value.name)
        value.name = names.get(name, name)
    # It speaks of the names and axes that the graph had.
    for key in [key for key in model.metadata_props if key.startswith(PREFIX)]:
        del model.metadata_props[key]
    SharedWeights(folder / WEIGHTS).take(model)
    save(model, folder / MODEL_FILE)


def _put_input_batch_first(graph: ir.Graph, value: ir.Value, signature: Signature) -> None:
    name = str(value.name)
    layout = signature.layouts[name]
    if layout.is_kept:
        return
    given = ir.Value(name=name, shape=_permuted(value, layout), type=value.type)
    value.name = f"{name}/graph"
    node = ir.node("Transpose", [given], {"perm": list(layout.to_graph)}, name=f"{name}/layout")
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    node.outputs[0].name = f"{name}/in_graph"
    node.outputs[0].type = value.type
    graph.inputs[graph.inputs.index(value)] = given
    graph.insert_before(graph[0], node)


def _put_output_batch_first(graph: ir.Graph, value: ir.Value, signature: Signature) -> None:
    name = str(value.name)
    layout = signature.layouts[name]
    if layout.is_kept:
        return
    value.name = f"{name}/in_graph"
    node = ir.node("Transpose", [value], {"perm": list(layout.to_client)}, name=f"{name}/layout")
    output = node.outputs[0]
    output.name = name
    output.type = value.type
    output.shape = _permuted(value, layout)
    graph.append(node)
    graph.outputs[graph.outputs.index(value)] = output


def _permuted(value: ir.Value, layout: Layout) -> ir.Shape | None:
    """The shape of a tensor of the graph, in the layout of clients."""
    if value.shape is None:
        return None
    return ir.Shape([value.shape[axis] for axis in layout.to_client])
