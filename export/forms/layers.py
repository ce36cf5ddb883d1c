"""What the forms share that write a stack layer by layer, one direction after the other.

Between layers the sequence stays two-dimensional, [T*B, N], with the rows of step t at [t*B, (t+1)*B]: the input of all
steps is projected in one `Gemm`, and a form only says how a direction walks over what comes out of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..cells import Group, OnnxCell, dotted
from ..derived import cell_of
from ..graph import Builder
from ..stack import Direction, Stack, fixed


@dataclass(frozen=True)
class Side:
    """One direction of one layer, to be walked over.

    Attributes:
        build: takes the nodes.
        stack: what it is part of.
        cell: what a step is.
        groups: the weights of each group of gates.
        weight_hr: (P, H), or None without a projection.
        projected: what the input contributes to each group at all steps, [T*B, g*H].
        states: at the start, [B, P] ...; None for zeros.
        mask: whether step t is within row b, [T*B, 1]; None without lengths.
        reverse: whether the last step is walked first.
        name: what the names of its nodes begin with.

    What a derived cell takes and gives at one step has a leading axis, [1, B, ...], the states too.
    """

    build: Builder
    stack: Stack
    cell: OnnxCell
    groups: Mapping[str, Group]
    weight_hr: ir.Value | None
    projected: Mapping[str, ir.Value]
    states: Sequence[ir.Value | None]
    mask: ir.Value | None
    reverse: bool
    name: str

    def width(self, group: str) -> int:
        """g*H: what each row of `projected` has."""
        return fixed(self.groups[group].weight_ih, 0)


Walked = tuple[ir.Value, Sequence[ir.Value]]
"""Output [T*B, P] in the order of time, and the states after the last step walked.

Beyond the end of a row the states stay as they are (so that the reverse direction starts at the row's own last step),
and the output is of no account.
"""

Walk = Callable[[Sequence[Side]], Sequence[Walked]]
"""The directions of one layer, walked over."""


def write_layers(build: Builder, stack: Stack, walk: Walk) -> list[ir.Value]:
    """-> output (T, B, D*P), final states (L*D, B, P), (L*D, B, H) ..."""
    cell, mask = cell_of(build, stack), _mask(build, stack)
    sequence = build.reshape(stack.input, [-1, fixed(stack.input, 2)], name="input")  # [T*B, I]
    starts = _starts(build, stack, cell)
    finals: list[Sequence[ir.Value]] = []
    for number, layer in enumerate(stack.layers):
        sides = [
            _side(build, stack, cell, direction, sequence, starts[len(finals) + which], mask, number, which)
            for which, direction in enumerate(layer)
        ]
        outputs = []
        for side, (output, final) in zip(sides, walk(sides), strict=True):
            if mask is not None:
                output = build.op("Where", mask, output, zero(build, stack), name=f"{side.name}h.kept")
            finals.append(final)
            outputs.append(output)
        sequence = build.concat(outputs, axis=1, name=f"l{number}.output")  # [T*B, D*P]
    output = to_steps(build, stack, sequence, len(stack.layers[0]) * stack.sizes[0], name="output")
    return [output, *_finals(build, stack, finals)]


def _side(
    build: Builder,
    stack: Stack,
    cell: OnnxCell,
    direction: Direction,
    sequence: ir.Value,
    states: Sequence[ir.Value | None],
    mask: ir.Value | None,
    number: int,
    which: int,
) -> Side:
    """Direction `which` (1: reverse) of layer `number`; `sequence` is what the layer reads, [T*B, N]."""
    name = f"l{number}{'fr'[which]}."
    groups = cell.arrange(build, direction, name)
    projected = {
        group: build.op("Gemm", sequence, weights.weight_ih, weights.bias, name=name + dotted(group, "x"), transB=1)
        for group, weights in groups.items()
    }
    return Side(build, stack, cell, groups, direction.weight_hr, projected, states, mask, which == 1, name)


def to_steps(
    build: Builder, stack: Stack, rows: ir.Value, width: int, *, name: str, between: Sequence[int] = ()
) -> ir.Value:
    """[T*B, width] -> [T, *between, B, width]"""
    if isinstance(stack.steps, int):
        return build.reshape(rows, [stack.steps, *between, -1, width], name=name)
    return build.reshape(rows, [size(build, stack, 0), *between, size(build, stack, 1), width], name=name)


def with_shape(
    values: Sequence[ir.Value], stack: Stack, width: int, *, stacked: bool, dtype: ir.DataType | None = None
) -> Sequence[ir.Value]:
    """Note in the file that each is [B, width], or [1, B, width] for a derived cell, of the stack's dtype if not told.

    onnxruntime cannot tell it from T*B rows in T parts. It never uses a buffer of unknown size again, and looks through
    all of them for every node: 2,000 steps then take many times as long to open (docs/performance.md).
    """
    dtype = dtype or stack.input.dtype
    assert dtype is not None
    for value in values:
        value.shape = ir.Shape([1, stack.batch, width] if stacked else [stack.batch, width])
        value.dtype = dtype
    return values


def size(build: Builder, stack: Stack, axis: int) -> int | ir.Value:
    """T (axis 0) or B (axis 1), a tensor of one element where it is dynamic."""
    assert stack.input.shape is not None
    known = stack.input.shape[axis]
    if isinstance(known, int):
        return known
    return build.once(
        (build, "size", axis),
        lambda: build.op("Shape", stack.input, name=f"{'TB'[axis]}", start=axis, end=axis + 1),
    )


def zero(build: Builder, stack: Stack) -> ir.Value:
    """0 in the dtype of the stack."""
    assert stack.input.dtype is not None
    dtype = stack.input.dtype.numpy()
    return build.once(("zero", dtype), lambda: build.constant(np.zeros((), dtype), name="zero"))


def _mask(build: Builder, stack: Stack) -> ir.Value | None:
    """Whether step t is within row b, [T*B, 1]; stacks of the same lengths share it."""
    lengths = stack.lengths
    if lengths is None:
        return None

    def make() -> ir.Value:
        steps = size(build, stack, 0)
        if isinstance(steps, int):
            count = build.constant(np.arange(steps).reshape(-1, 1), name="steps")
        else:
            ends = [build.constant(np.array(end), name=f"steps.{end}") for end in (0, 1)]
            number = build.op("Squeeze", steps, name="steps.T")
            count = build.reshape(build.op("Range", ends[0], number, ends[1], name="steps"), [-1, 1], name="steps.rows")
        within = build.op("Less", count, build.cast(lengths, ir.DataType.INT64, name="lengths"), name="within")
        return build.reshape(within, [-1, 1], name="mask")

    return build.once(("mask", lengths, str(stack.steps)), make)


def _starts(build: Builder, stack: Stack, cell: OnnxCell) -> list[Sequence[ir.Value | None]]:
    """The first states of each direction of each layer: [B, P] ..., or [1, B, P] ...; None for zeros."""
    walks = sum(map(len, stack.layers))
    kinds: list[Sequence[ir.Value | None]] = []
    for name, state, width in zip(stack.state_names, stack.states, stack.sizes, strict=True):
        if state is None:
            kinds.append([None] * walks)
            continue
        rows = state if cell.stacked else build.reshape(state, [-1, width], name=f"{name}0.rows")
        parts = build.split(rows, walks, name=f"{name}0.")
        kinds.append(with_shape(parts, stack, width, stacked=cell.stacked))
    return list(zip(*kinds, strict=True))


def _finals(build: Builder, stack: Stack, finals: Sequence[Sequence[ir.Value]]) -> list[ir.Value]:
    """The last states of each direction of each layer -> one tensor of each kind."""
    kinds = zip(stack.state_names, zip(*finals, strict=True), stack.sizes, strict=True)
    return [
        build.reshape(build.concat(each, axis=0, name=f"{name}_n.rows"), [len(finals), -1, width], name=f"{name}_n")
        for name, each, width in kinds
    ]
