"""The loops of `deploy_rnn.scan` in a captured graph: each is a `Scan`, whose steps form "unrolled" writes out."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from deploy_rnn.errors import ExportError

from ..stack import loop_states, loop_steps
from .builder import Builder


def unroll(graph: ir.Graph, node: ir.Node, prefix: str, max_nodes: int) -> None:
    """Write out every step of a loop whose number of steps is known, in its place.

    Each step is a copy of the body, which goes on seeing everything outside.

    Raises:
        ExportError: more than `max_nodes` nodes.
    """
    steps = loop_steps(node)
    assert isinstance(steps, int)  # `lower` refuses a dynamic T in this form
    body = node.attributes["body"].as_graph()
    nodes = steps * len(body)
    if nodes > max_nodes:
        raise ExportError(
            f"form='unrolled' would write {steps:,} steps of a loop as {nodes:,} nodes; the limit is `max_nodes` "
            f"(={max_nodes:,}). Use form='scan', or raise the limit."
        )
    build = Builder(graph, prefix, {})
    count = loop_states(node)
    states = list(node.inputs[:count])
    sequences = node.inputs[count:]
    rows: list[list[ir.Value]] = [[] for _ in body.outputs[count:]]
    for t in range(steps):
        step = build.scope("", step=t)
        index = build.scope("index", step=t).constant(np.array(t))
        slices = [
            step.scope(f"x{number}_").op("Gather", sequence, index, axis=0)
            for number, sequence in enumerate(sequences)
        ]
        results = _copied(step, body, [*states, *slices])
        states = list(results[:count])
        for of_steps, result in zip(rows, results[count:], strict=True):
            assert result is not None
            of_steps.append(result)
    stacked = [build.scope(f"y{number}.").stack(of_steps) for number, of_steps in enumerate(rows)]
    _put(graph, node, build.nodes, [*states, *stacked])


def _copied(
    build: Builder, body: ir.Graph, inputs: Sequence[ir.Value | None]
) -> list[ir.Value | None]:
    """Write a copy of the body of a loop for these inputs: -> its outputs."""
    copied = body.clone(allow_outer_scope_values=True)
    given = dict(zip(copied.inputs, inputs, strict=True))
    outputs = list(copied.outputs)
    copied.outputs.clear()
    for old, new in given.items():
        if new is not None:
            old.replace_all_uses_with(new)
    nodes = list(copied)
    copied.remove(nodes)
    for number, node in enumerate(nodes):
        node.name = build.scope(f"n{number}_").name
        for place, value in enumerate(node.outputs):
            value.name = build.scope(f"n{number}_{place}_").name
    build.nodes += nodes
    return [given.get(output, output) for output in outputs]


def _put(
    graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value | None]
) -> None:
    graph.insert_before(node, nodes)
    replacements = []
    for old, new in zip(node.outputs, outputs, strict=True):
        # A value that is also something else cannot take the name of an output.
        same = ir.node("Identity", [new])
        same.outputs[0].shape = old.shape
        same.outputs[0].type = old.type
        name = old.name
        old.name = None
        same.outputs[0].name = name
        graph.insert_before(node, [same])
        replacements.append((old, same.outputs[0]))
    for old, value in replacements:
        old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
