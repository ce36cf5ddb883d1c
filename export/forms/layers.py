"""What the forms share that write a stack layer by layer, one direction after the other.

Between layers the sequence stays two-dimensional, [T*B, N], with the rows of step t at [t*B, (t+1)*B]: the input of all
steps is projected in one `Gemm`, and a form only says how a direction walks over what comes out of it.

Lengths are no affair of the walk. Every direction walks on beyond the end of a row: what came before does not depend on
it, and nothing there is read. The reverse direction walks a sequence of which each row has been turned around within
its length, so that it starts at the row's own last step; its output is turned back. A last state is that of the row's
own last step. A mask at every step costs an RNN a third of its time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..stack import DirectionWeights, Stack, fixed
from .builder import Builder
from .cells import Group, OnnxCell, dotted
from .derived import cell_of


@dataclass(frozen=True)
class DirectionBuild:
    """One direction of one layer, to be walked over.

    Attributes:
        build: takes the nodes.
        stack: what it is part of.
        cell: what a step is.
        groups: the weights of each group of gates.
        weight_hr: (P, H), or None without a projection.
        projected: what the input contributes to each group at all steps, [T*B, g*H].
        states: at the start, [B, P] ...; None for zeros.
        reverse: whether the last step is walked first.
        kept: of how many kinds of state every step is asked for.
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
    reverse: bool
    kept: int
    name: str

    def width(self, group: str) -> int:
        """g*H: what each row of `projected` has."""
        return fixed(self.groups[group].weight_ih, 0)


Walked = tuple[Sequence[ir.Value], Sequence[ir.Value]]
"""`kept` kinds of state at every step, [T*B, P] ..., in the order of time, and all after the last step walked."""

Walk = Callable[[Sequence[DirectionBuild]], Sequence[Walked]]
"""The directions of one layer, walked over."""


def write_layers(build: Builder, stack: Stack, walk: Walk) -> list[ir.Value]:
    """-> output (T, B, D*P), final states (L*D, B, P), (L*D, B, H) ..."""
    cell, ends = cell_of(build, stack), RowEnds.of(build, stack)
    sequence = build.reshape(stack.input, [-1, fixed(stack.input, 2)], name="input")  # [T*B, I]
    starts = _starts(build, stack, cell)
    finals: list[Sequence[ir.Value]] = []
    for number, layer in enumerate(stack.layers):
        sources = [sequence]
        if len(layer) == 2:
            sources.append(ends.turned(sequence, name=f"l{number}r.input") if ends else sequence)
        sides = [
            _side(build, stack, cell, direction, sources[which], starts[len(finals) + which], number, which)
            for which, direction in enumerate(layer)
        ]
        outputs = []
        for which, (side, (rows, final)) in enumerate(zip(sides, walk(sides), strict=True)):
            outputs.append(ends.turned(rows[0], name=f"{side.name}h.in_time") if ends and which == 1 else rows[0])
            finals.append(ends.last(rows, side.name) if ends else final)
        sequence = build.concat(outputs, axis=1, name=f"l{number}.output")  # [T*B, D*P]
    if ends:
        sequence = ends.cleared(sequence)
    width = len(stack.layers[0]) * stack.sizes[0]
    return [to_steps(build, stack, sequence, width, name="output"), *_finals(build, stack, finals)]


def _side(
    build: Builder,
    stack: Stack,
    cell: OnnxCell,
    direction: DirectionWeights,
    sequence: ir.Value,
    states: Sequence[ir.Value | None],
    number: int,
    which: int,
) -> DirectionBuild:
    """Direction `which` (1: reverse) of layer `number`; `sequence` is what it reads, [T*B, N]."""
    name = f"l{number}{'fr'[which]}."
    groups = cell.split_weights(build, direction, name)
    projected = {
        group: build.op("Gemm", sequence, weights.weight_ih, weights.bias, name=name + dotted(group, "x"), transB=1)
        for group, weights in groups.items()
    }
    has_lengths = stack.lengths is not None
    reverse, kept = which == 1 and not has_lengths, stack.kept if has_lengths else 1
    return DirectionBuild(build, stack, cell, groups, direction.weight_hr, projected, states, reverse, kept, name)


def to_steps(
    build: Builder, stack: Stack, rows: ir.Value, width: int, *, name: str, between: Sequence[int] = ()
) -> ir.Value:
    """[T*B, width] -> [T, *between, B, width]"""
    if isinstance(stack.steps, int):
        return build.reshape(rows, [stack.steps, *between, -1, width], name=name)
    return build.reshape(rows, [size(build, stack, 0), *between, size(build, stack, 1), width], name=name)


def with_shape(values: Sequence[ir.Value], stack: Stack, width: int, *, stacked: bool) -> Sequence[ir.Value]:
    """Note in the file that each is [B, width], or [1, B, width] for a derived cell, and of the stack's dtype.

    onnxruntime cannot tell it from T*B rows in T parts. It never uses a buffer of unknown size again, and looks through
    all of them for every node: 2,000 steps then take many times as long to open (docs/performance.md).
    """
    dtype = stack.input.dtype
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


@dataclass(frozen=True)
class RowEnds:
    """What the lengths of the rows make of a walk that does not know of them.

    Attributes:
        build, stack: as of a side.
        lengths: (B,), int64.
    """

    build: Builder
    stack: Stack
    lengths: ir.Value

    @classmethod
    def of(cls, build: Builder, stack: Stack) -> "RowEnds | None":
        if stack.lengths is None:
            return None
        return cls(build, stack, build.cast(stack.lengths, ir.DataType.INT64, name="lengths"))

    def turned(self, rows: ir.Value, *, name: str) -> ir.Value:
        """[T*B, N], each row turned around within its length; its own inverse."""
        return self.build.op("Gather", rows, self._once("turned", self._turned), name=name, axis=0)

    def cleared(self, rows: ir.Value) -> ir.Value:
        """[T*B, N], zeros beyond the end of a row."""
        within = self._once("mask", lambda: self.build.reshape(self._within, [-1, 1], name="mask"))
        return self.build.op("Where", within, rows, zero(self.build, self.stack), name="output.rows")

    def last(self, rows: Sequence[ir.Value], name: str) -> Sequence[ir.Value]:
        """States at every step, [T*B, P] ..., as they were walked -> after each row's own last step, [B, P] ..."""
        at = self._once("ends", lambda: self._place(self._last_step, name="ends"))
        kinds = zip(self.stack.state_names, rows, strict=False)
        found = [self.build.op("Gather", each, at, name=f"{name}{kind}.last", axis=0) for kind, each in kinds]
        return found + found[:1] * (len(self.stack.sizes) - len(found))  # those that nobody reads

    def _turned(self) -> ir.Value:
        """Which of T*B rows stands where: step length - 1 - t of the same row at step t within it, itself beyond."""
        back = self.build.op("Sub", self._last_step, self._steps, name="back")
        step = self.build.op("Where", self._within, back, self._steps, name="turned.step")
        return self.build.reshape(self._place(step, name="turned.place"), [-1], name="turned")

    def _place(self, step: ir.Value, *, name: str) -> ir.Value:
        """Steps, [T, B] or [B] -> where they are among T*B rows."""
        batch = size(self.build, self.stack, 1)
        first = self.build.op("Mul", step, self._as_number(batch, "B"), name=f"{name}.first")
        row = self._once("row", lambda: self._count(batch, "B"))
        return self.build.op("Add", first, row, name=name)

    @property
    def _within(self) -> ir.Value:
        """Whether step t is within row b, [T, B]."""
        return self._once("within", lambda: self.build.op("Less", self._steps, self.lengths, name="within"))

    @property
    def _last_step(self) -> ir.Value:
        """Of each row, [B]."""
        return self._once("last", lambda: self.build.op("Sub", self.lengths, self._number(1), name="last_step"))

    @property
    def _steps(self) -> ir.Value:
        """0, 1 ... T-1, [T, 1]."""
        count = self._once("count", lambda: self._count(size(self.build, self.stack, 0), "T"))
        return self._once("steps", lambda: self.build.reshape(count, [-1, 1], name="steps"))

    def _count(self, upto: int | ir.Value, name: str) -> ir.Value:
        """0, 1 ... upto-1"""
        if isinstance(upto, int):
            return self.build.constant(np.arange(upto), name=f"{name}.count")
        ends = self._number(0), self._as_number(upto, name), self._number(1)
        return self.build.op("Range", *ends, name=f"{name}.count")

    def _as_number(self, value: int | ir.Value, name: str) -> ir.Value:
        if isinstance(value, int):
            return self._number(value)
        return self.build.once(("number", value), lambda: self.build.op("Squeeze", value, name=f"{name}.number"))

    def _number(self, value: int) -> ir.Value:
        return self.build.once(("number", value), lambda: self.build.constant(np.array(value), name=f"number.{value}"))

    def _once(self, what: str, make: Callable[[], ir.Value]) -> ir.Value:
        """Stacks of the same lengths, T and B share it."""
        return self.build.once(("ends", what, self.lengths, str(self.stack.steps), str(self.stack.batch)), make)


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
