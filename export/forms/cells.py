"""What one time step is in ONNX: the counterpart of `deploy_rnn.nn.cells`, one small function per cell.

Tensors are two-dimensional: a state is [B, P] or [B, H]. Gates with the same activation form a group, which has one
product; what the input contributes to a group of g gates is [B, g*H]. So a step has one `Gemm` for each group, and
onnxruntime's CPU provider fuses it with the activation that follows.

A cell without a counterpart here is derived from its PyTorch step (see `derived`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from deploy_rnn.nn import cells

from ..stack import DirectionWeights
from .builder import Builder
from .product import Limits, limits_of_states, product


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
        build: takes the nodes; its names end in the number of the step.
        direction: takes the nodes that all steps of the direction share.
        groups: the weights of each group.
        weight_hr: (P, H), or None without a projection.
        own: the cell's own parameters.
        projected: what the input contributes to each group.
        states: before the step; None for zeros.
        limits: of the first state, in which every step finds it; None if they are not known.
    """

    build: Builder
    direction: Builder
    groups: Mapping[str, Group]
    weight_hr: ir.Value | None
    own: Sequence[ir.Value]
    projected: Mapping[str, ir.Value]
    states: Sequence[ir.Value | None]
    limits: Limits | None = None

    def gates(self, value: ir.Value, *names: str) -> Sequence[ir.Value]:
        """[B, g*H] -> g times [B, H]"""
        return self.build.op_many("Split", value, outputs=names, axis=1, num_outputs=len(names))

    def total(self, group: str = "") -> ir.Value:
        """projected + h[t-1] @ W_hh.T"""
        projected = self.projected[group]
        return self._add_product(group, projected) or projected

    def hidden(self, group: str) -> ir.Value | None:
        """h[t-1] @ W_hh.T + b_hh; None for zeros"""
        bias_hh = self.groups[group].bias_hh
        return self._add_product(group, bias_hh) or bias_hh

    def _add_product(self, group: str, bias: ir.Value | None) -> ir.Value | None:
        """bias + h[t-1] @ W_hh.T; None for the first step without states, which has nothing to multiply."""
        h = self.states[0]
        if h is None:
            return None
        build = group_scope(self.build, group).scope("g")
        weight_hh = self.groups[group].weight_hh
        return product(build, h, weight_hh, bias, self.limits)


Write = Callable[[StepBuild], Sequence[ir.Value]]
"""Writes one step; returns the states after it."""


@dataclass(frozen=True)
class OnnxCell:
    """What the forms must know about a cell.

    Attributes:
        write: the function.
        groups: name -> its gates, by their position in weight_ih and weight_hh.
        bias_in_step: the groups that add b_hh within the step, and not beforehand to all steps.
        direction_axis: whether everything that a step reads and writes has a leading axis, [1, B, ...], as in PyTorch.
        bounded: whether h does not leave -1 to 1 if it begins there, unless it is projected.
    """

    write: Write
    groups: Mapping[str, Sequence[int]]
    bias_in_step: frozenset[str] = frozenset()
    direction_axis: bool = False
    bounded: bool = False

    def split_weights(self, build: Builder, direction: DirectionWeights) -> dict[str, Group]:
        """The weights of each group."""
        return {group: self._group(build, direction, group) for group in self.groups}

    def _group(self, build: Builder, direction: DirectionWeights, group: str) -> Group:
        gates = sum(len(positions) for positions in self.groups.values())

        def rows(name: str, value: ir.Value) -> ir.Value:
            return group_scope(build, group).scope(name).blocks(value, self.groups[group], gates)

        # b_hh joins b_ih before all steps, unless the step needs it by itself.
        biases = [direction.bias_ih]
        bias_in_step = None
        if group in self.bias_in_step:
            bias_in_step = direction.bias_hh
        else:
            biases.append(direction.bias_hh)
        bias = build.scope("bias").add([value for value in biases if value is not None])
        return Group(
            weight_ih=rows("weight_ih", direction.weight_ih),
            bias=bias and rows("bias", bias),
            weight_hh=rows("weight_hh", direction.weight_hh),
            bias_hh=bias_in_step and rows("bias_hh", bias_in_step),
        )


def group_scope(build: Builder, group: str) -> Builder:
    """The scope of a group of gates; the only group of a cell has no name."""
    return build.scope(f"{group}.") if group else build


def tanh(step: StepBuild) -> list[ir.Value]:
    """1 Gemm, 1 Tanh."""
    return [step.build.scope("h").op("Tanh", step.total())]


def relu(step: StepBuild) -> list[ir.Value]:
    """1 Gemm, 1 Relu."""
    return [step.build.scope("h").op("Relu", step.total())]


def gru(step: StepBuild) -> list[ir.Value]:
    """2 Gemm, 1 Split, 7 others; h[t] = n + z * (h[t-1] - n), as (1-z) * n + z * h[t-1] has one node more."""
    build = step.build
    rz = build.scope("rz").op("Sigmoid", step.total("rz"))
    r, z = step.gates(rz, "r", "z")
    total = step.projected["n"]
    hidden = step.hidden("n")
    if hidden is not None:
        reset = build.scope("rn").op("Mul", r, hidden)
        total = build.scope("n.total").op("Add", total, reset)
    n = build.scope("n").op("Tanh", total)
    h = step.states[0]
    # Without a state before: h[t] = n - z * n.
    if h is None:
        lost = build.scope("zn").op("Mul", z, n)
        return [build.scope("h").op("Sub", n, lost)]
    difference = build.scope("apart").op("Sub", h, n)
    kept = build.scope("kept").op("Mul", z, difference)
    return [build.scope("h").op("Add", n, kept)]


def lstm(step: StepBuild) -> list[ir.Value]:
    """2 Gemm, 1 Split, 7 others, and 1 Gemm for a projection."""
    build = step.build
    ifo = build.scope("ifo").op("Sigmoid", step.total("ifo"))
    i, f, o = step.gates(ifo, "i", "f", "o")
    g = build.scope("g").op("Tanh", step.total("g"))
    c = build.scope("new").op("Mul", i, g)
    if step.states[1] is not None:
        kept = build.scope("kept").op("Mul", f, step.states[1])
        c = build.scope("c").op("Add", kept, c)
    squashed = build.scope("tanh").op("Tanh", c)
    h = build.scope("h").op("Mul", o, squashed)
    if step.weight_hr is not None:
        # What is projected is within -1 and 1.
        h = product(build.scope("p"), h, step.weight_hr, limits=limits_of_states(build, None))
    return [h, c]


CELLS: dict[cells.Step, OnnxCell] = {
    cells.tanh: OnnxCell(tanh, {"": [0]}, bounded=True),
    cells.relu: OnnxCell(relu, {"": [0]}),
    cells.gru: OnnxCell(gru, {"rz": [0, 1], "n": [2]}, bias_in_step=frozenset({"n"}), bounded=True),
    cells.lstm: OnnxCell(lstm, {"ifo": [0, 1, 3], "g": [2]}, bounded=True),
}
"""PyTorch's step -> its counterpart."""
