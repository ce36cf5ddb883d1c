"""Form "unrolled": every step of both directions is written out, and the time axis is fixed.

    [T*B, g*H] -> Split into T parts [B, g*H] -> per step the nodes of the cell (see `cells`) -> one Concat -> [T*B, P]

so that no step pays for a Slice, Squeeze or Transpose.
"""

from collections.abc import Sequence

import onnx_ir as ir

from ..stack import Stack
from .builder import Builder
from .cells import StepBuild, group_scope
from .layers import DirectionBuild, Walked, write_layers
from .shapes import set_shapes, split_time


def unrolled(build: Builder, stack: Stack) -> list[ir.Value]:
    """-> output (T, B, D*P), final states (L*D, B, P), (L*D, B, H) ..."""
    return write_layers(
        build, stack, lambda directions: [_walk(direction) for direction in directions]
    )


def _walk(direction: DirectionBuild) -> Walked:
    """One direction over all steps.

    1. Forward: step t reads the states of t-1.
    2. Reverse: step t reads the states of t+1; its output is stored at t all the same.
    """
    count = _steps(direction.stack)
    parts = {group: _split_steps(direction, group) for group in direction.projected}
    kept: dict[int, Sequence[ir.Value]] = {}
    states: Sequence[ir.Value | None] = direction.states
    finals: Sequence[ir.Value] = []
    # Case 2: walk the steps backwards, but write to the same index.
    steps = reversed(range(count)) if direction.reverse else range(count)
    for t in steps:
        step = StepBuild(
            build=direction.build.scope("", step=t),
            direction=direction.build,
            groups=direction.groups,
            weight_hr=direction.weight_hr,
            own=direction.own,
            projected={group: of_steps[t] for group, of_steps in parts.items()},
            states=states,
            limits=direction.limits,
        )
        finals = direction.cell.write(step)
        kept[t] = finals[: direction.kept]
        states = finals
    sequences = []
    for index in range(direction.kept):
        states_in_time = [kept[t][index] for t in range(count)]
        sequences.append(_join(direction, states_in_time, index))
    return Walked(sequences, finals)


def _join(direction: DirectionBuild, steps: Sequence[ir.Value], index: int) -> ir.Value:
    """State `index` after every step -> [T*B, P]"""
    build = direction.build.scope(direction.stack.state_names[index])
    joined = build.concat(steps, axis=0)
    if direction.cell.direction_axis:
        return build.scope(".rows").reshape(
            joined, [-1, direction.stack.sizes[index]]
        )  # from [T, B, P]
    return joined


def _split_steps(direction: DirectionBuild, group: str) -> Sequence[ir.Value]:
    """What the input contributes to a group, [T*B, width] -> T times [B, width], or [1, B, width]."""
    stack = direction.stack
    width = direction.width(group)
    direction_axis = direction.cell.direction_axis
    build = group_scope(direction.build, group).scope("x")
    rows = direction.projected[group]
    if direction_axis:
        rows = split_time(build.scope(".steps"), stack, rows, width)  # [T, B, width]
    parts = build.split(rows, _steps(stack))
    set_shapes(parts, stack, width, direction_axis=direction_axis)
    return parts


def _steps(stack: Stack) -> int:
    assert isinstance(stack.steps, int)  # `lower` refuses a dynamic T in this form
    return stack.steps
