"""What the forms share that write a stack layer by layer, one direction after the other.

Between layers the sequence stays two-dimensional, [T*B, N], with the rows of step t at [t*B, (t+1)*B]: the input of all
steps is projected in one `Gemm`, and a form only says how a direction walks over the result. Rows of different length
are handled around the walk (see `row_ends`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..stack import Stack, fixed
from .builder import Builder
from .cells import Group, OnnxCell, group_scope
from .derived import cell_of
from .product import Limits, input_product, limits_of_states
from .row_ends import RowEnds
from .shapes import set_shapes, split_time

REVERSE = 1
"""The index of the reverse direction; forward is 0."""


@dataclass(frozen=True)
class DirectionBuild:
    """One direction of one layer, to be walked over.

    Attributes:
        build: takes the nodes; its scope is the direction's.
        name: of that scope, such as "l0f.".
        stack: what it is part of.
        cell: what a step is.
        groups: the weights of each group of gates.
        weight_hr: (P, H), or None without a projection.
        own: the cell's own parameters.
        projected: what the input contributes to each group at all steps, [T*B, g*H].
        states: at the start, [B, P] ...; None for zeros.
        reverse: whether the last step is walked first.
        kept: how many states, from the first, are needed after every step.
        limits: of the first state at every step; None if they are not known.

    A derived cell has an axis for the direction in front of everything that a step reads and writes, [1, B, ...], the
    states too.
    """

    build: Builder
    name: str
    stack: Stack
    cell: OnnxCell
    groups: Mapping[str, Group]
    weight_hr: ir.Value | None
    own: Sequence[ir.Value]
    projected: Mapping[str, ir.Value]
    states: Sequence[ir.Value | None]
    reverse: bool
    kept: int
    limits: Limits | None

    def width(self, group: str) -> int:
        """g*H: what each row of `projected` has."""
        return fixed(self.groups[group].weight_ih, 0)


@dataclass(frozen=True)
class Walked:
    """What a form returns for one direction.

    Attributes:
        sequences: the `kept` states at every step, [T*B, P] ..., in the order of time.
        finals: every state after the last step walked.
    """

    sequences: Sequence[ir.Value]
    finals: Sequence[ir.Value]


Walk = Callable[[Sequence[DirectionBuild]], Sequence[Walked]]
"""Walks over the directions of one layer."""


def write_layers(build: Builder, stack: Stack, walk: Walk) -> list[ir.Value]:
    """-> output (T, B, D*P), final states (L*D, B, P), (L*D, B, H) ..."""
    cell = cell_of(build, stack)
    ends = RowEnds.of(build, stack)
    sequence = build.scope("input").reshape(stack.input, [-1, stack.input_size])  # [T*B, I]
    starts = _start_states(build, stack, cell)
    finals: list[Sequence[ir.Value]] = []
    for number, layer in enumerate(stack.layers):
        count = len(layer)
        sources = [sequence] * count
        if ends and count == 2:
            sources[REVERSE] = ends.reverse_rows(build.scope(f"l{number}r.input"), sequence)
        layer_starts = starts[number * count : (number + 1) * count]
        directions = _directions(build, stack, cell, number, sources, layer_starts)
        outputs = []
        for index, walked in enumerate(walk(directions)):
            direction = directions[index].build
            output, final = walked.sequences[0], walked.finals
            if ends:
                if index == REVERSE:
                    output = ends.reverse_rows(direction.scope("h.in_time"), output)
                final = ends.final_states(direction, walked.sequences, layer_starts[index])
            outputs.append(output)
            finals.append(final)
        sequence = build.scope(f"l{number}.output").concat(outputs, axis=1)  # [T*B, D*P]
    if ends:
        sequence = ends.clear_padding(build.scope("output.rows"), sequence)
    width = len(stack.layers[0]) * stack.sizes[0]
    output = split_time(build.scope("output"), stack, sequence, width)  # (T, B, D*P)
    return [output, *_final_states(build, stack, finals)]


def _start_states(build: Builder, stack: Stack, cell: OnnxCell) -> list[Sequence[ir.Value | None]]:
    """The first states of each direction of each layer: [B, P] ..., or [1, B, P] ...; None for zeros."""
    count = sum(len(layer) for layer in stack.layers)
    starts: list[Sequence[ir.Value | None]] = []
    for name, state, width in zip(stack.state_names, stack.states, stack.sizes, strict=True):
        if state is None:
            starts.append([None] * count)
            continue
        rows = state  # (L*D, B, P)
        if not cell.direction_axis:
            rows = build.scope(f"{name}0.rows").reshape(state, [-1, width])  # [L*D*B, P]
        parts = build.scope(f"{name}0.").split(rows, count)
        set_shapes(parts, stack, width, direction_axis=cell.direction_axis)
        starts.append(parts)
    return list(zip(*starts, strict=True))


def _directions(
    build: Builder,
    stack: Stack,
    cell: OnnxCell,
    number: int,
    sources: Sequence[ir.Value],
    starts: Sequence[Sequence[ir.Value | None]],
) -> list[DirectionBuild]:
    """The directions of layer `number`, each with its source [T*B, N] and its first states."""
    directions = []
    for index, weights in enumerate(stack.layers[number]):
        name = f"l{number}{'fr'[index]}."
        direction = build.scope(name)
        groups = cell.split_weights(direction, weights)
        projected = {}
        for group, group_weights in groups.items():
            x = group_scope(direction, group).scope("x")
            projected[group] = input_product(
                x, sources[index], group_weights.weight_ih, group_weights.bias
            )  # [T*B, g*H]
        has_lengths = stack.lengths is not None
        limits = None
        if cell.bounded and weights.weight_hr is None:
            limits = limits_of_states(direction.scope("limits"), starts[index][0])
        directions.append(
            DirectionBuild(
                build=direction,
                name=name,
                stack=stack,
                cell=cell,
                groups=groups,
                weight_hr=weights.weight_hr,
                own=weights.own,
                projected=projected,
                states=starts[index],
                # With lengths the source is reversed already, and final states are looked up among those of all steps.
                reverse=index == REVERSE and not has_lengths,
                kept=stack.kept if has_lengths else 1,
                limits=limits,
            )
        )
    return directions


def _final_states(
    build: Builder, stack: Stack, finals: Sequence[Sequence[ir.Value]]
) -> list[ir.Value]:
    """The final states of each direction of each layer -> one tensor of each state."""
    tensors = []
    for index, name in enumerate(stack.state_names):
        final = build.scope(f"{name}_n")
        parts = [states[index] for states in finals]  # [B, P] each
        rows = final.scope(".rows").concat(parts, axis=0)  # [L*D*B, P]
        shape = [len(finals), -1, stack.sizes[index]]
        tensors.append(final.reshape(rows, shape))
    return tensors
