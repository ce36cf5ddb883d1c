"""A cell without a twin in `cells`: its PyTorch step is traced once, and the nodes are repeated for each step.

The step runs as it stands, on one direction, so that tensors keep the leading axis, D=1. What it does to the weights
alone, above all their transposition, is written once for all steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from deploy_rnn.errors import ExportError
from deploy_rnn.nn import cells
from deploy_rnn.nn.recurrent import right_hand

from ..stack import Stack, fixed
from ..torch_onnx import DYNAMIC, trace
from .builder import Builder
from .cells import CELLS, OnnxCell, StepBuild


def cell_of(build: Builder, stack: Stack) -> OnnxCell:
    """The cell of `stack`: the twin of its step, or one derived from it."""
    return CELLS.get(stack.cell.step) or derived(build, stack)


def derived(build: Builder, stack: Stack) -> OnnxCell:
    """A cell that repeats the nodes of PyTorch's step.

    Raises:
        ExportError: torch.onnx cannot take the step; or it fixes the batch, branches, or returns another number of
            states than the cell has.
    """
    cell, direction = stack.cell, stack.layers[0][0]
    bias_in_step = frozenset([""] if cell.bias_in_step else [])
    weights = _recurrent(direction.weight_hh, direction.bias_hh if bias_in_step else None, direction.weight_hr)
    assert direction.weight_ih.dtype is not None
    example = _Example(
        cell,
        widths=(fixed(direction.weight_ih, 0), *stack.sizes),
        weights=tuple(tuple(fixed(weight, axis) for axis in range(len(weight.shape or ()))) for weight in weights),
        zero_bias=cell.bias_in_step and direction.bias_hh is None,
        dtype=direction.weight_ih.dtype.numpy(),
    )
    traced = build.once(example, lambda: _Traced(example, build.opset))
    return OnnxCell(traced.write, {"": range(cell.gates)}, bias_in_step, stacked=True)


def _recurrent(*weights: ir.Value | None) -> list[ir.Value]:
    """W_hh, b_hh, W_hr: those that there are."""
    return [weight for weight in weights if weight is not None]


@dataclass(frozen=True)
class _Example:
    """What a step is traced with; stacks that agree in it share the trace.

    Attributes:
        cell: has the step.
        widths: G*H of what the input contributes, then P, H ... of the states.
        weights: the shape of each recurrent weight, as the layer has it.
        zero_bias: whether the step expects a b_hh that the layer has not.
        dtype: of all tensors.
    """

    cell: cells.Cell
    widths: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    zero_bias: bool
    dtype: np.dtype[np.generic]

    def tensors(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        projected, *states = (self._ones((1, 2, width)) for width in self.widths)
        return projected, states, [self._ones(shape) for shape in self.weights]

    def _ones(self, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.ones(shape, self.dtype))


class _Alone(nn.Module):
    """A step by itself, for one direction."""

    def __init__(self, example: _Example) -> None:
        super().__init__()
        self._step, self._zero_bias = example.cell.step, example.zero_bias

    def forward(self, projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        turned = [right_hand([weight]) for weight in weights]
        if self._zero_bias:
            turned.insert(1, projected.new_zeros(1, 1, projected.size(2)))
        return self._step(projected, states, turned)


def _graph(example: _Example, opset: int) -> ir.Graph:
    """Inputs: projected (1, B, G*H), states (1, B, P) ..., weights; outputs: states."""
    named = f"the step `{getattr(example.cell.step, '__name__', example.cell.step)}`"
    projected, states, weights = example.tensors()
    open_batch = [{1: DYNAMIC}, [{1: DYNAMIC} for _ in states], [None for _ in weights]]
    try:
        graph = trace(_Alone(example).eval(), (projected, states, weights), {}, open_batch, opset_version=opset).graph
    except ExportError as error:
        raise ExportError(f"{named} cannot be written in ONNX: {error}") from error
    if len(graph.outputs) != len(states):
        raise ExportError(f"{named} returns {len(graph.outputs)} states; its cell says `states={len(states)}`.")
    if any(each.type == ir.AttributeType.GRAPH for node in graph for each in node.attributes.values()):
        raise ExportError(f"{named} branches or loops, which cannot be repeated; use operations such as torch.where.")
    return graph


class _Traced:
    """A step as nodes: those that read nothing but weights, and the others."""

    def __init__(self, example: _Example, opset: int) -> None:
        self._widths, self._dtype = example.widths[1:], example.dtype
        self._graph = _graph(example, opset)
        self._of_weights: list[ir.Node] = []
        self._of_step: list[ir.Node] = []
        changing = set(self._graph.inputs[: len(example.widths)])
        for node in self._graph:
            if changing.isdisjoint(node.inputs):
                self._of_weights.append(node)
            else:
                self._of_step.append(node)
                changing.update(node.outputs)

    def write(self, step: StepBuild) -> list[ir.Value]:
        """Repeat the nodes for one step."""
        group = step.groups[""]
        weights = _recurrent(group.weight_hh, group.bias_hh, step.weight_hr)
        known = dict(step.build.once((self, *weights), lambda: self._write_once(step, weights)))
        states = [state or self._zeros(step, width) for state, width in zip(step.states, self._widths, strict=True)]
        known.update(zip(self._graph.inputs, [step.projected[""], *states], strict=False))
        for node in self._of_step:
            step.build.copy(node, known, name=lambda name: f"{step.name}{name}.{step.time}")
        return [known[value] for value in self._graph.outputs]

    def _write_once(self, step: StepBuild, weights: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
        """What the steps of a direction share: value of the trace -> value here."""
        build = step.build.outside
        known = dict(zip(self._graph.inputs[len(self._widths) + 1 :], weights, strict=True))
        known.update(build.once((self, "constants"), lambda: self._constants(build)))
        for node in self._of_weights:
            build.copy(node, known, name=lambda name: f"{step.name}{name}")
        return known

    def _constants(self, build: Builder) -> dict[ir.Value, ir.Value]:
        constants = {}
        for name, value in self._graph.initializers.items():
            assert value.const_value is not None
            constants[value] = build.constant(value.const_value.numpy(), name=f"step.{name}")
        return constants

    def _zeros(self, step: StepBuild, width: int) -> ir.Value:
        """A state (1, B, width) for a stack that is given none."""
        build, name = step.build, f"zeros.{width}"

        def make() -> ir.Value:
            batch = build.op("Shape", step.projected[""], name=f"{name}.batch", start=1, end=2)
            shape = build.shape([1, batch, width], name=f"{name}.shape")
            return build.op("ConstantOfShape", shape, name=name, value=ir.tensor(np.zeros(1, self._dtype)))

        return build.once((build, name), make)
