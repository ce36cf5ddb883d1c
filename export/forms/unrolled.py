"""Form "unrolled": every step of both directions is written out, and the time axis is fixed.

The graph stays two-dimensional, with rows of step t at [t*B, (t+1)*B):

    [T*B, I] -> one Gemm for the input of all steps -> Split into T parts [B, G*H]
             -> per step the nodes of the cell (see `cells`) -> one Concat -> [T*B, D*P]

so that no step pays for a Slice, Squeeze or Transpose. A derived cell has a leading axis: parts and states [1, B, ...].
"""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..cells import Group, OnnxCell, Step, dotted
from ..derived import cell_of
from ..graph import Builder
from ..stack import Direction, Stack, fixed


def unrolled(build: Builder, stack: Stack) -> list[ir.Value]:
    """Write the stack: -> output (T, B, D*P), final states (L*D, B, P), (L*D, B, H) ..."""
    cell = cell_of(build, stack)
    sequence = build.reshape(stack.input, [-1, fixed(stack.input, 2)], name="input")  # [T*B, I]
    starts = _starts(build, stack, cell)
    finals: list[Sequence[ir.Value]] = []
    for number, layer in enumerate(stack.layers):
        sides = []
        for side, direction in enumerate(layer):
            name = f"l{number}{'fr'[side]}."
            outputs, final = _walk(
                build, stack, cell, direction, sequence, starts[len(finals)], reverse=side == 1, name=name
            )
            finals.append(final)
            sides.append(outputs)
        sequence = build.concat(sides, axis=1, name=f"l{number}.output")  # [T*B, D*P]
    shape = [_steps(stack), -1, len(stack.layers[0]) * stack.sizes[0]]
    return [build.reshape(sequence, shape, name="output"), *_finals(build, stack, finals)]


def _walk(
    build: Builder,
    stack: Stack,
    cell: OnnxCell,
    direction: Direction,
    sequence: ir.Value,
    states: Sequence[ir.Value | None],
    *,
    reverse: bool,
    name: str,
) -> tuple[ir.Value, Sequence[ir.Value]]:
    """One direction over all steps: sequence [T*B, I] or [T*B, D*P] -> output [T*B, P], in the order of time, and the
    states after the last step walked.

    1. Forward: step t reads the states of t-1.
    2. Reverse: step t reads the states of t+1; its output is stored at t all the same.
    """
    groups = cell.arrange(build, direction, name)
    projected = _projected(build, stack, cell, groups, sequence, name)
    order = list(range(_steps(stack)))
    outputs = {}
    # Case 2: walk the steps backwards, but write to the same index.
    for t in reversed(order) if reverse else order:
        step = Step(build, groups, direction.weight_hr, projected[t], states, name, t)
        states = after = cell.write(step)
        outputs[t] = after[0]
    joined = build.concat([outputs[t] for t in order], axis=0, name=f"{name}h")
    if cell.stacked:
        joined = build.reshape(joined, [-1, stack.sizes[0]], name=f"{name}h.rows")
    return joined, after


def _projected(
    build: Builder, stack: Stack, cell: OnnxCell, groups: Mapping[str, Group], sequence: ir.Value, name: str
) -> list[dict[str, ir.Value]]:
    """What the input contributes to each group at each step: [B, g*H], or [1, B, G*H] for a derived cell."""
    parts = {}
    for group, weights in groups.items():
        x = name + dotted(group, "x")
        product = build.op("Gemm", sequence, weights.weight_ih, weights.bias, name=x, transB=1)  # [T*B, g*H]
        if cell.stacked:
            product = build.reshape(product, [_steps(stack), -1, fixed(weights.weight_ih, 0)], name=f"{x}.steps")
        parts[group] = build.split(product, _steps(stack), name=x)
    return [dict(zip(parts, at, strict=True)) for at in zip(*parts.values(), strict=True)]


def _starts(build: Builder, stack: Stack, cell: OnnxCell) -> list[Sequence[ir.Value | None]]:
    """The first states of each direction of each layer: [B, P] ..., or [1, B, P] ...; None for zeros."""
    walks = sum(map(len, stack.layers))
    kinds: list[Sequence[ir.Value | None]] = []
    for name, state, size in zip(_names(stack), stack.states, stack.sizes, strict=True):
        if state is None:
            kinds.append([None] * walks)
            continue
        rows = state if cell.stacked else build.reshape(state, [-1, size], name=f"{name}0.rows")
        kinds.append(build.split(rows, walks, name=f"{name}0."))
    return list(zip(*kinds, strict=True))


def _finals(build: Builder, stack: Stack, finals: Sequence[Sequence[ir.Value]]) -> list[ir.Value]:
    """The last states of each direction of each layer -> one tensor of each kind."""
    kinds = zip(_names(stack), zip(*finals, strict=True), stack.sizes, strict=True)
    return [
        build.reshape(build.concat(each, axis=0, name=f"{name}_n.rows"), [len(finals), -1, size], name=f"{name}_n")
        for name, each, size in kinds
    ]


def _names(stack: Stack) -> list[str]:
    """h, c, and numbers for what comes after."""
    return ["h", "c", *(f"s{kind}" for kind in range(2, len(stack.sizes)))][: len(stack.sizes)]


def _steps(stack: Stack) -> int:
    assert isinstance(stack.steps, int)  # `lower` has seen to it
    return stack.steps
