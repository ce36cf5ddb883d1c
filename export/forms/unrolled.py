"""Form "unrolled": every step of both directions is written out, and the time axis is fixed.

    [T*B, g*H] -> Split into T parts [B, g*H] -> per step the nodes of the cell (see `cells`) -> one Concat -> [T*B, P]

so that no step pays for a Slice, Squeeze or Transpose.
"""

from collections.abc import Sequence

import onnx_ir as ir

from ..stack import Stack
from .builder import Builder
from .cells import StepBuild, dotted
from .layers import DirectionBuild, Walked, to_steps, with_shape, write_layers


def unrolled(build: Builder, stack: Stack) -> list[ir.Value]:
    """-> output (T, B, D*P), final states (L*D, B, P), (L*D, B, H) ..."""
    return write_layers(build, stack, lambda sides: [_walk(side) for side in sides])


def _walk(side: DirectionBuild) -> Walked:
    """One direction over all steps.

    1. Forward: step t reads the states of t-1.
    2. Reverse: step t reads the states of t+1; its output is stored at t all the same.
    """
    build, count = side.build, _steps(side.stack)
    parts = {
        group: _parts(side, rows, side.width(group), side.name + dotted(group, "x"))
        for group, rows in side.projected.items()
    }
    kept: dict[int, Sequence[ir.Value]] = {}
    states: Sequence[ir.Value | None] = side.states
    after: Sequence[ir.Value] = []
    # Case 2: walk the steps backwards, but write to the same index.
    for t in reversed(range(count)) if side.reverse else range(count):
        projected = {group: of_group[t] for group, of_group in parts.items()}
        after = side.cell.write(StepBuild(build, side.groups, side.weight_hr, projected, states, side.name, t))
        states, kept[t] = after, after[: side.kept]
    rows = [_joined(side, [kept[t][kind] for t in range(count)], kind) for kind in range(side.kept)]
    return rows, after


def _joined(side: DirectionBuild, steps: Sequence[ir.Value], kind: int) -> ir.Value:
    """A state at every step -> [T*B, P]"""
    build, name = side.build, f"{side.name}{side.stack.state_names[kind]}"
    joined = build.concat(steps, axis=0, name=name)
    return build.reshape(joined, [-1, side.stack.sizes[kind]], name=f"{name}.rows") if side.cell.stacked else joined


def _parts(side: DirectionBuild, rows: ir.Value, width: int, name: str) -> Sequence[ir.Value]:
    """[T*B, width] -> T times [B, width], or [1, B, width] for a derived cell."""
    stacked = side.cell.stacked
    split = to_steps(side.build, side.stack, rows, width, name=f"{name}.steps") if stacked else rows
    parts = side.build.split(split, _steps(side.stack), name=name)
    return with_shape(parts, side.stack, width, stacked=stacked)


def _steps(stack: Stack) -> int:
    assert isinstance(stack.steps, int)  # `lower` has seen to it
    return stack.steps
