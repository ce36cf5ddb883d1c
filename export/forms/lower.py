"""Captured stacks are replaced by real ONNX operators, in the form asked for."""

import re
from collections.abc import Hashable, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from deploy_rnn.errors import DynamicAxisError

from ..stack import DOMAIN, Stack, stack_nodes
from . import FIXED_TIME, FORMS
from .builder import Builder
from .node_count import MAX_NODES, check_node_count


def lower(model: ir.Model, form: str, *, max_nodes: int = MAX_NODES) -> ir.Model:
    """Write every recurrent stack of `model` in `form`, in place.

    Raises:
        DynamicAxisError: the time axis is dynamic and the form fixes it.
        ExportError: the form would have more than `max_nodes` nodes, or lacks what the model needs.
    """
    made: dict[Hashable, Any] = {}
    if form in FIXED_TIME:
        stacks = [Stack.of(node) for node in stack_nodes(model.graph)]
        for stack in stacks:
            if not isinstance(stack.steps, int):
                raise _dynamic_time(model.graph, stack.steps, form)
        check_node_count(stacks, max_nodes, model.graph.opset_imports)
    for number, node in enumerate(stack_nodes(model.graph)):
        stack = Stack.of(node)
        build = Builder(model.graph, _free_prefix(model.graph, f"rnn{number}."), made)
        _replace(model.graph, node, build, FORMS[form](build, stack))
    for clean in (common.RemoveUnusedNodesPass(), common.ClearMetadataAndDocStringPass()):
        clean(model)
    model.graph.opset_imports.pop(DOMAIN, None)
    return model


def _free_prefix(graph: ir.Graph, prefix: str) -> str:
    taken = [value.name or "" for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())]
    while any(name.startswith(prefix) for name in taken):
        prefix = f"_{prefix}"
    return prefix


def _replace(graph: ir.Graph, node: ir.Node, build: Builder, results: Sequence[ir.Value]) -> None:
    graph.insert_before(node, build.nodes)
    for old, new in zip(node.outputs, results, strict=True):
        new.shape, new.type = old.shape, old.type
        if old.is_graph_output():
            new.name, old.name = old.name, None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _dynamic_time(graph: ir.Graph, steps: ir.SymbolicDim, form: str) -> DynamicAxisError:
    symbols = set(re.findall(r"\w+", str(steps)))
    axes = [
        f"axis {axis} ({str(size)!r}) of `{value.name}`"
        for value in graph.inputs
        for axis, size in enumerate(value.shape or ())
        if isinstance(size, ir.SymbolicDim) and symbols & set(re.findall(r"\w+", str(size)))
    ]
    return DynamicAxisError(
        f"{' and '.join(axes)} is the time axis, which form={form!r} cannot keep dynamic: it writes out every step. "
        "Leave it out of `dynamic_shapes`, or use form='scan' or form='native'."
    )
