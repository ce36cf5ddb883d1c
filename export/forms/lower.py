"""Replace captured stacks by real ONNX operators, in one form."""

import re
from collections.abc import Hashable
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from deploy_rnn.errors import DynamicAxisError, ExportError

from ..precision.names import INT8
from ..precision.weights import NO_CELLS, CellKeys
from ..stack import (
    DOMAIN,
    Stack,
    layer_path,
    linear_nodes,
    loop_nodes,
    loop_steps,
    stack_nodes,
)
from . import FIXED_TIME, FORMS, ROW_ENDS
from .builder import Builder, replace_node
from .loops import unroll
from .node_count import MAX_NODES, check_node_count
from .product import product
from .step_products import round_products, step_keys, written_keys


def lower(
    model: ir.Model,
    form: str,
    *,
    max_nodes: int = MAX_NODES,
    row_ends: str = "sequence_lens",
    precision: str | None = None,
    cells: CellKeys = NO_CELLS,
    rounds_inputs: bool = True,
) -> ir.Model:
    """Write every recurrent stack of `model` in `form`, in place.

    Args:
        model: captured.
        form: a key of `FORMS`.
        max_nodes: of form "unrolled".
        row_ends: how form "native" writes rows of different length, a key of `ROW_ENDS`.
        precision: of the products, "int8" or that of the weights.
        cells: in "int8", the weights of the cells of torch.nn.
        rounds_inputs: in "int8", whether what is no state is multiplied in eight bits, too; see `Int8Scope`.

    Raises:
        DynamicAxisError: the time axis is dynamic and the form fixes it.
        ExportError: the form would have more than `max_nodes` nodes, or lacks what the model needs.
    """
    graph = model.graph
    loops = loop_nodes(graph)
    if form == "native" and not stack_nodes(graph):
        raise ExportError(
            "form='native' writes ONNX's RNN, GRU and LSTM, and the model has no recurrent layer; use form='scan'."
        )
    if precision == INT8:
        _check_int8(graph, form)
        keys = step_keys(graph, cells, rounds_inputs=rounds_inputs)
        products = round_products(graph, graph.all_nodes(), keys, _free_prefix(graph, "step"))
        _check_products(graph, products, rounds_inputs)
    if form in FIXED_TIME:
        _check_steps(graph, form, max_nodes, precision)
        for number, node in enumerate(loops):
            unroll(graph, node, _free_prefix(graph, f"loop{number}."), max_nodes)
    others = list(graph.all_nodes())
    write = ROW_ENDS[row_ends] if form == "native" else FORMS[form]
    results: dict[Hashable, Any] = {}
    for number, node in enumerate(linear_nodes(graph)):
        build = Builder(graph, _free_prefix(graph, f"linear{number}."), results, precision)
        rows, weight, bias = (*node.inputs, None)[:3]
        assert rows is not None
        assert weight is not None
        replace_node(graph, node, build.nodes, [product(build, rows, weight, bias)])
    for number, node in enumerate(stack_nodes(graph)):
        # Read one at a time: the stack before may have written the input of this one.
        stack = Stack.of(node)
        prefix = _free_prefix(graph, f"rnn{number}.")
        build = Builder(graph, prefix, results, precision, rounds_inputs=rounds_inputs)
        outputs = write(build, stack)
        replace_node(graph, node, build.nodes, outputs)
    if precision == INT8:
        # What else is multiplied by a weight of the layers, such as that of a linear layer which shares it.
        round_products(graph, others, written_keys(results), _free_prefix(graph, "tied"))
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    graph.opset_imports.pop(DOMAIN, None)
    return model


def _check_int8(graph: ir.Graph, form: str) -> None:
    """Raises: ExportError: a form or a layer that has no products in eight bits."""
    if form == "native":
        raise ExportError(
            "form='native' has no products in eight bits: ONNX's operators compute in float32; use form='scan' or "
            "form='unrolled' with precision='int8'."
        )
    for node in stack_nodes(graph):
        if Stack.of(node).input.dtype != ir.DataType.FLOAT:
            raise ExportError(
                f"precision='int8' is for layers in float32, and {_described(node)} computes in another dtype; leave "
                "it out."
            )


def _check_products(graph: ir.Graph, products: int, rounds_inputs: bool) -> None:
    """Raises: ExportError: nothing is of eight bits.

    products: those outside of layers.
    """
    if stack_nodes(graph) or products:
        return
    if loop_nodes(graph) and not rounds_inputs:
        raise ExportError(
            "int8_products='state' is for products of a state with weights, and the step of the loop has none in "
            "float32; leave it out."
        )
    if loop_nodes(graph):
        raise ExportError(
            "precision='int8' is for products with weights, such as those of a linear layer or a cell, and the step of "
            "the loop has none in float32; leave it out."
        )
    raise ExportError(
        "precision='int8' is for recurrent layers, for cells and for loops that stay loops, and the model has none of "
        "them; leave it out, or put a loop of Python into deploy_rnn.scan."
    )


def _described(node: ir.Node) -> str:
    return f"`{layer_path(node)}`" if layer_path(node) else "the layer"


def _check_steps(graph: ir.Graph, form: str, max_nodes: int, precision: str | None) -> None:
    stacks = [Stack.of(node) for node in stack_nodes(graph)]
    steps_of_all = [stack.steps for stack in stacks]
    steps_of_all += [loop_steps(node) for node in loop_nodes(graph)]
    for steps in steps_of_all:
        if not isinstance(steps, int):
            raise _dynamic_time(graph, steps, form)
    check_node_count(stacks, max_nodes, graph.opset_imports, precision)


def _free_prefix(graph: ir.Graph, prefix: str) -> str:
    """`prefix`, with underscores in front if a name of the model begins with it."""
    values = (*graph.inputs, *graph.outputs, *graph.initializers.values())
    used_names = [value.name or "" for value in values]
    while any(name.startswith(prefix) for name in used_names):
        prefix = f"_{prefix}"
    return prefix


def _dynamic_time(graph: ir.Graph, steps: ir.SymbolicDim, form: str) -> DynamicAxisError:
    """The error that names the axes of the inputs from which the steps follow."""
    symbols = _symbols(steps)
    axes = [
        f"axis {axis} ({str(size)!r}) of `{value.name}`"
        for value in graph.inputs
        for axis, size in enumerate(value.shape or ())
        if isinstance(size, ir.SymbolicDim) and symbols & _symbols(size)
    ]
    if not axes:
        return DynamicAxisError(
            f"a recurrent layer has as many steps as the longest row, which the lengths tell; form={form!r} writes out "
            "every step, and cannot keep that dynamic. Let pad_packed_sequence have `total_length=x.size(...)`, the "
            "steps of the padded input, or use form='scan' or form='native'."
        )
    return DynamicAxisError(
        f"{' and '.join(axes)} is the time axis, which form={form!r} cannot keep dynamic: it writes out every step. "
        "Leave it out of `dynamic_shapes`, or use form='scan' or form='native'."
    )


def _symbols(size: ir.SymbolicDim) -> set[str]:
    """The names in a size, which may be an expression."""
    return set(re.findall(r"\w+", str(size)))
