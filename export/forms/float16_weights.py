"""Weights that are stored in float16, and cast to float32 where they are read.

    constant float16 ─ Cast ─ Gemm, Scan, GRU ...
    table float16 ─ Gather ─ Cast ─ ...

onnxruntime computes such a Cast once, when it opens the file. A table stays in float16, as only its rows are cast.
"""

import numpy as np
import onnx_ir as ir

from .builder import replace_node


def store_in_float16(model: ir.Model) -> None:
    """Store each constant of two axes or more in float16 if that holds all of its numbers, in place.

    Those are the weights of a model that `precision.float16` has rounded. No number changes.
    """
    graph = model.graph
    casts = []
    for value in list(graph.initializers.values()):
        halves = None if value.is_graph_output() else _halves(value)
        if halves is None:
            continue
        stored = _constant(f"{value.name}.float16", halves)
        for node in _lookups(value):
            _cast_rows(node, stored)
        if value.uses():
            casts.append(_cast(stored, value))
        del graph.initializers[str(value.name)]
        graph.register_initializer(stored)
    if casts:
        graph.insert_before(graph[0], casts)


def _halves(value: ir.Value) -> np.ndarray | None:
    """The numbers of a constant in float16; None if it is not a weight, or float16 lacks one of them."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
        return None
    numbers = tensor.numpy()
    with np.errstate(over="ignore"):
        halves = numbers.astype(np.float16)
    return halves if np.array_equal(halves.astype(np.float32), numbers) else None


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    dtype = ir.TensorType(tensor.dtype)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=dtype, const_value=tensor)


def _cast(stored: ir.Value, value: ir.Value) -> ir.Node:
    """Cast what is stored to what `value` was, for all that read it, in loops, too."""
    cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT})
    [output] = cast.outputs
    output.shape = value.shape
    output.type = value.type
    value.replace_all_uses_with(output)
    output.name = value.name
    return cast


def _lookups(table: ir.Value) -> list[ir.Node]:
    """The nodes that look up rows of a table."""
    return [
        use.node
        for use in table.uses()
        if use.node.op_type == "Gather" and use.node.domain == "" and use.idx == 0
    ]


def _cast_rows(node: ir.Node, table: ir.Value) -> None:
    """Look up rows in a table of float16, and cast them."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    [rows] = node.outputs
    indices = node.inputs[1]
    gather = ir.Node("", "Gather", [table, indices], list(node.attributes.values()))
    gather.outputs[0].name = f"{rows.name}.float16"
    cast = ir.node("Cast", [gather.outputs[0]], attributes={"to": ir.DataType.FLOAT})
    cast.outputs[0].name = rows.name
    replace_node(graph, node, [gather, cast], cast.outputs)
