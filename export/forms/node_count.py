"""How large a file with every step written out will be, before it is written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from deploy_rnn.errors import ExportError

from ..stack import Stack
from .builder import Builder
from .cells import StepBuild
from .derived import cell_of
from .product import limits_of_states

# A node of such a file takes about as many bytes, with its names; the weights come on top.
NODE_BYTES = 130

# Above this many, onnxruntime takes over 4 s to open the file (docs/performance.md).
MAX_NODES = 20_000


def check_node_count(
    stacks: Sequence[Stack], max_nodes: int, opsets: Mapping[str, int], precision: str | None = None
) -> None:
    """Raises: ExportError: more than `max_nodes` nodes, with the number and what to do."""
    nodes = sum(_nodes(stack, opsets, precision) for stack in stacks)
    if nodes <= max_nodes:
        return
    steps = max(stack.steps for stack in stacks if isinstance(stack.steps, int))
    megabytes = nodes * NODE_BYTES / 1e6
    raise ExportError(
        f"form='unrolled' would write {steps:,} steps as {nodes:,} nodes, {megabytes:.0f} MB besides "
        f"the weights, which onnxruntime takes about {load_seconds(nodes):.0f} s to open; the limit is `max_nodes` "
        f"(={max_nodes:,}). Use form='scan' or form='native', or raise the limit."
    )


def load_seconds(nodes: int) -> float:
    """About how long onnxruntime takes to open a file of that many nodes (docs/performance.md)."""
    return 1.1 * math.pow(nodes / 8000, 1.5)


def _nodes(stack: Stack, opsets: Mapping[str, int], precision: str | None) -> int:
    """Steps times directions times what one step of the cell writes."""
    assert isinstance(stack.steps, int)
    graph = ir.Graph((), (), nodes=(), opset_imports=dict(opsets))
    scratch = Builder(graph, "", {}, precision)
    cell = cell_of(scratch, stack)
    direction = stack.layers[0][0]
    limits = None
    if cell.bounded and direction.weight_hr is None:
        limits = limits_of_states(scratch, stack.states[0])
    groups = cell.split_weights(scratch, direction)
    step = StepBuild(
        build=scratch,
        direction=scratch,
        groups=groups,
        weight_hr=direction.weight_hr,
        own=direction.own,
        projected={group: ir.Value() for group in groups},
        states=(),
        limits=limits,
    )
    # The second time, without what all steps share.
    nodes_of_step = 0
    for _ in range(2):
        before = len(scratch.nodes)
        cell.write(replace(step, states=[ir.Value() for _ in stack.sizes]))
        nodes_of_step = len(scratch.nodes) - before
    directions = sum(len(layer) for layer in stack.layers)
    return stack.steps * directions * nodes_of_step
