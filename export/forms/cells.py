"""What one time step is in ONNX: the twin of `deploy_rnn.nn.cells`, one small function per cell.

Tensors are two-dimensional: a state is [B, P] or [B, H]. Gates with an activation in common form a group, which has one
product; what the input contributes to a group of g gates is [B, g*H]. So a step has one `Gemm` for each group, and
onnxruntime's CPU provider fuses it with the activation behind it.

A cell that has no twin here is derived from its PyTorch step (see `derived`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from deploy_rnn.nn import cells

from ..stack import DirectionWeights
from .builder import Builder


@dataclass(frozen=True)
class Group:
    """The weights of one group of g gates, in one direction.

    Attributes:
        weight_ih: (g*H, I).
        bias: what is added to the input's product, (g*H,), or None.
        weight_hh: (g*H, P), or (g*H,) of a diagonal cell.
        bias_hh: (g*H,) if it is added within the step, else None.
    """

    weight_ih: ir.Value
    bias: ir.Value | None
    weight_hh: ir.Value
    bias_hh: ir.Value | None


@dataclass(frozen=True)
class StepBuild:
    """One step of one direction, to be written.

    Attributes:
        build: takes the nodes.
        groups: the weights of each group.
        weight_hr: (P, H), or None without a projection.
        projected: what the input contributes to each group.
        states: before the step; None for zeros.
        name: what the names of its nodes begin with.
        time: what they end with.
    """

    build: Builder
    groups: Mapping[str, Group]
    weight_hr: ir.Value | None
    projected: Mapping[str, ir.Value]
    states: Sequence[ir.Value | None]
    name: str
    time: int

    def op(self, op_type: str, *inputs: ir.Value | None, name: str, **attributes: int) -> ir.Value:
        """A node with one output."""
        return self.build.op(op_type, *inputs, name=f"{self.name}{name}{self.time}", **attributes)

    def gates(self, value: ir.Value, *names: str) -> Sequence[ir.Value]:
        """[B, g*H] -> g times [B, H]"""
        outputs = [f"{self.name}{name}{self.time}" for name in names]
        return self.build.op_many("Split", value, names=outputs, axis=1, num_outputs=len(names))

    def total(self, group: str = "") -> ir.Value:
        """projected + h[t-1] @ W_hh.T"""
        return self._product(group, self.projected[group]) or self.projected[group]

    def hidden(self, group: str) -> ir.Value | None:
        """h[t-1] @ W_hh.T + b_hh; None for zeros"""
        return self._product(group, self.groups[group].bias_hh) or self.groups[group].bias_hh

    def _product(self, group: str, plus: ir.Value | None) -> ir.Value | None:
        """None for the first step without states, which has nothing to multiply."""
        if self.states[0] is None:
            return None
        return self.op("Gemm", self.states[0], self.groups[group].weight_hh, plus, name=dotted(group, "g"), transB=1)


Write = Callable[[StepBuild], Sequence[ir.Value]]
"""Writes one step; returns the states after it."""


@dataclass(frozen=True)
class OnnxCell:
    """What the forms must know about a cell.

    Attributes:
        write: the function.
        groups: name -> its gates, by their place in weight_ih and weight_hh.
        late: the groups that add b_hh within the step, and not beforehand to all steps.
        stacked: whether what a step takes and gives has a leading axis, [1, B, ...], as in PyTorch.
    """

    write: Write
    groups: Mapping[str, Sequence[int]]
    bias_in_step: frozenset[str] = frozenset()
    stacked: bool = False

    def split_weights(self, build: Builder, direction: DirectionWeights, name: str) -> dict[str, Group]:
        """The weights of each group."""
        return {group: self._group(build, direction, group, name) for group in self.groups}

    def _group(self, build: Builder, direction: DirectionWeights, group: str, name: str) -> Group:
        count = sum(map(len, self.groups.values()))

        def rows(value: ir.Value, what: str) -> ir.Value:
            return build.blocks(value, self.groups[group], count, name=name + dotted(group, what))

        early, bias_in_step = [direction.bias_ih, direction.bias_hh], None
        if group in self.bias_in_step:
            early, bias_in_step = early[:1], direction.bias_hh
        bias = build.add([each for each in early if each is not None], name=f"{name}bias")
        return Group(
            weight_ih=rows(direction.weight_ih, "weight_ih"),
            bias=bias and rows(bias, "bias"),
            weight_hh=rows(direction.weight_hh, "weight_hh"),
            bias_hh=bias_in_step and rows(bias_in_step, "bias_hh"),
        )


def dotted(group: str, name: str) -> str:
    """The name of something that belongs to a group."""
    return f"{group}.{name}" if group else name


def tanh(step: StepBuild) -> list[ir.Value]:
    """1 Gemm, 1 Tanh."""
    return [step.op("Tanh", step.total(), name="h")]


def relu(step: StepBuild) -> list[ir.Value]:
    """1 Gemm, 1 Relu."""
    return [step.op("Relu", step.total(), name="h")]


def gru(step: StepBuild) -> list[ir.Value]:
    """2 Gemm, 1 Split, 7 others; h[t] = n + z * (h[t-1] - n), as (1-z) * n + z * h[t-1] has one node more."""
    r, z = step.gates(step.op("Sigmoid", step.total("rz"), name="rz"), "r", "z")
    total, hidden = step.projected["n"], step.hidden("n")
    if hidden is not None:
        total = step.op("Add", total, step.op("Mul", r, hidden, name="rn"), name="n.total")
    n = step.op("Tanh", total, name="n")
    h = step.states[0]
    if h is None:
        return [step.op("Sub", n, step.op("Mul", z, n, name="zn"), name="h")]
    apart = step.op("Sub", h, n, name="apart")
    return [step.op("Add", n, step.op("Mul", z, apart, name="kept"), name="h")]


def lstm(step: StepBuild) -> list[ir.Value]:
    """2 Gemm, 1 Split, 7 others, and 1 Gemm for a projection."""
    i, f, o = step.gates(step.op("Sigmoid", step.total("ifo"), name="ifo"), "i", "f", "o")
    c = step.op("Mul", i, step.op("Tanh", step.total("g"), name="g"), name="new")
    if step.states[1] is not None:
        c = step.op("Add", step.op("Mul", f, step.states[1], name="kept"), c, name="c")
    h = step.op("Mul", o, step.op("Tanh", c, name="tanh"), name="h")
    if step.weight_hr is not None:
        h = step.op("Gemm", h, step.weight_hr, name="p", transB=1)
    return [h, c]


CELLS: dict[cells.Step, OnnxCell] = {
    cells.tanh: OnnxCell(tanh, {"": [0]}),
    cells.relu: OnnxCell(relu, {"": [0]}),
    cells.gru: OnnxCell(gru, {"rz": [0, 1], "n": [2]}, bias_in_step=frozenset({"n"})),
    cells.lstm: OnnxCell(lstm, {"ifo": [0, 1, 3], "g": [2]}),
}
"""PyTorch's step -> its twin."""
