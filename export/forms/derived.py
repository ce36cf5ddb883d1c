"""A cell without a counterpart in `cells`: its PyTorch step is traced once, and the nodes are repeated for each step.

The step runs as it stands, on one direction, so that tensors keep the leading axis, D=1. What it does to the weights
alone, above all their transposition, is written once for all steps.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from deploy_rnn.errors import ExportError
from deploy_rnn.nn import cells
from deploy_rnn.nn.recurrent import right_hand

from ..precision.names import INT8
from ..precision.state_values import values_from
from ..precision.weight_products import WeightProduct, computed, initializer
from ..stack import Stack, fixed
from ..torch_onnx import DYNAMIC, trace
from .builder import Builder
from .cells import CELLS, OnnxCell, StepBuild
from .int8_product import weight_numbers
from .step_products import write_product


def cell_of(build: Builder, stack: Stack) -> OnnxCell:
    """The cell of `stack`: the counterpart of its step, or one derived from it."""
    return CELLS.get(stack.cell.step) or derived(build, stack)


def derived(build: Builder, stack: Stack) -> OnnxCell:
    """Return a cell that repeats the nodes of PyTorch's step.

    Raises:
        ExportError: torch.onnx cannot take the step; or it fixes the batch, branches, or returns another number of
            states than the cell has.
    """
    cell = stack.cell
    direction = stack.layers[0][0]
    bias_hh = direction.bias_hh if cell.bias_in_step else None
    weights = _recurrent_weights(direction.weight_hh, bias_hh, *direction.own, direction.weight_hr)
    assert direction.weight_ih.dtype is not None
    example = _Example(
        cell,
        widths=(fixed(direction.weight_ih, 0), *stack.sizes),
        weight_shapes=tuple(_fixed_shape(weight) for weight in weights),
        zero_bias=cell.bias_in_step and direction.bias_hh is None,
        dtype=direction.weight_ih.dtype.numpy(),
    )
    step = build.once(example, lambda: _TracedStep(example, build.opset))
    bias_in_step = frozenset([""] if cell.bias_in_step else [])
    return OnnxCell(step.write, {"": range(cell.gates)}, bias_in_step, direction_axis=True)


def _recurrent_weights(*weights: ir.Value | None) -> list[ir.Value]:
    """W_hh, b_hh, the cell's own, W_hr without those that are missing."""
    return [weight for weight in weights if weight is not None]


def _fixed_shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(fixed(value, axis) for axis in range(len(value.shape)))


@dataclass(frozen=True)
class _Example:
    """What a step is traced with; stacks for which it is equal share the trace.

    Attributes:
        cell: has the step.
        widths: G*H of what the input contributes, then P, H ... of the states.
        weight_shapes: of each recurrent weight, as the layer has it.
        zero_bias: whether the step expects a b_hh that the layer does not have.
        dtype: of all tensors.
    """

    cell: cells.Cell
    widths: tuple[int, ...]
    weight_shapes: tuple[tuple[int, ...], ...]
    zero_bias: bool
    dtype: np.dtype[np.generic]

    def tensors(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """projected (1, B, G*H), states (1, B, P) ..., weights; B=2"""
        projected, *states = (self._ones((1, 2, width)) for width in self.widths)
        weights = [self._ones(shape) for shape in self.weight_shapes]
        return projected, states, weights

    def _ones(self, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.ones(shape, self.dtype))


class _StepModule(nn.Module):
    """A step for one direction, as a module that can be traced."""

    def __init__(self, example: _Example) -> None:
        super().__init__()
        self._step = example.cell.step
        self._zero_bias = example.zero_bias

    def forward(
        self, projected: Tensor, states: list[Tensor], weights: list[Tensor]
    ) -> list[Tensor]:
        right_weights = [right_hand([weight]) for weight in weights]
        if self._zero_bias:
            right_weights.insert(1, projected.new_zeros(1, 1, projected.size(2)))
        return self._step(projected, states, right_weights)


def _trace_step(example: _Example, opset: int) -> ir.Graph:
    """Inputs: projected (1, B, G*H), states (1, B, P) ..., weights; outputs: states."""
    name = f"the step `{getattr(example.cell.step, '__name__', example.cell.step)}`"
    projected, states, weights = example.tensors()
    axes = [{1: DYNAMIC}, [{1: DYNAMIC} for _ in states], [None for _ in weights]]
    module = _StepModule(example).eval()
    try:
        traced, limits = trace(module, (projected, states, weights), {}, axes, opset_version=opset)
    except ExportError as error:
        raise ExportError(f"{name} cannot be written in ONNX: {error}") from error
    graph = traced.graph
    if len(graph.outputs) != len(states):
        raise ExportError(
            f"{name} returns {len(graph.outputs)} states; its cell says `states={len(states)}`."
        )
    attributes = [attribute for node in graph for attribute in node.attributes.values()]
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in attributes):
        raise ExportError(
            f"{name} branches or loops, which cannot be repeated; use operations such as torch.where."
        )
    for rows in limits.ranges.values():
        # The least may be PyTorch's own, for a batch of 1, and the check tries 1.
        if rows.most is not None:
            raise ExportError(
                f"{name} branches on the number of rows, and takes {rows} only; let it compute the same for any number."
            )
    return graph


def _numbered_names(graph: ir.Graph) -> dict[str, str]:
    """Name there -> name here, of the constants and results of a traced step: "add_3", "add_10" -> "add", "add_1".

    PyTorch counts differently in each of its versions. A file is to be the same whichever has traced it.
    """
    counts: Counter[str] = Counter()
    names = {}
    results = [str(value.name) for node in graph for value in node.outputs]
    for name in [*graph.initializers, *results]:
        operator = re.sub(r"(_\d+)+$", "", name)
        number = counts[operator]
        counts[operator] += 1
        names[name] = f"{operator}_{number}" if number else operator
    return names


class _TracedStep:
    """A step as nodes: those that read nothing but weights, and the others."""

    def __init__(self, example: _Example, opset: int) -> None:
        self._state_widths = example.widths[1:]
        self._dtype = example.dtype
        self._graph = _trace_step(example, opset)
        self._names = _numbered_names(self._graph)
        self._weight_nodes: list[ir.Node] = []
        self._step_nodes: list[ir.Node] = []
        states = self._graph.inputs[1 : len(example.widths)]
        self._of_states = values_from(self._graph, states)
        changing_values = set(self._graph.inputs[: len(example.widths)])
        for node in self._graph:
            if changing_values.isdisjoint(node.inputs):
                self._weight_nodes.append(node)
            else:
                self._step_nodes.append(node)
                changing_values.update(node.outputs)

    def write(self, step: StepBuild) -> list[ir.Value]:
        """Repeat the nodes for one step."""
        group = step.groups[""]
        weights = _recurrent_weights(group.weight_hh, group.bias_hh, *step.own, step.weight_hr)
        shared_values = step.build.once(
            (self, *weights), lambda: self._write_weight_nodes(step.direction, weights)
        )
        values = dict(shared_values)
        inputs = [step.projected[""]]
        for state, width in zip(step.states, self._state_widths, strict=True):
            inputs.append(self._zeros(step, width) if state is None else state)
        # The weights, which come after these inputs, are in `values` already.
        values.update(zip(self._graph.inputs, inputs, strict=False))
        products = {}
        if step.build.precision == INT8:
            products = step.build.once(
                (self, "products", *weights), lambda: self._products(step.direction, weights)
            )
        for node in self._step_nodes:
            product = products.get(node)
            if product is None:
                step.build.copy(node, values, name=lambda name: f"{self._names[name]}.")
                continue
            [output] = node.outputs
            build = step.build.scope(f"{self._names[str(output.name)]}.product")
            bias = None if product.bias is None else values[product.bias]
            values[output] = write_product(build, product, values[product.rows], bias)
        return [values[value] for value in self._graph.outputs]

    def _products(
        self, build: Builder, weights: Sequence[ir.Value]
    ) -> dict[ir.Node, WeightProduct]:
        """The products of the step that can be of eight bits, with weights that are called as the scope of `build`."""
        numbers = {value: initializer(value) for value in self._graph.initializers.values()}
        inputs = self._graph.inputs[1 + len(self._state_widths) :]
        for value, weight in zip(inputs, weights, strict=True):
            numbers[value] = weight_numbers(weight)
        numbers |= computed(self._weight_nodes, numbers, build.opset)
        products = {}
        keys = set()
        for node in self._step_nodes:
            product = WeightProduct.of(node, numbers.get)
            if product is not None:
                # An input of the step keeps its name.
                name = build.scope(self._names.get(product.name, product.name)).name
                products[node] = replace(product, name=name)
                if build.rounds_inputs or product.rows in self._of_states:
                    keys.add(product.key)
        # A weight is of eight bits in all its products, or in none.
        return {node: product for node, product in products.items() if product.key in keys}

    def _write_weight_nodes(
        self, build: Builder, weights: Sequence[ir.Value]
    ) -> dict[ir.Value, ir.Value]:
        """What the steps of a direction share: value of the trace -> value here."""
        inputs = self._graph.inputs[1 + len(self._state_widths) :]
        values = dict(zip(inputs, weights, strict=True))
        values.update(build.once((self, "constants"), lambda: self._constants(build.root)))
        for node in self._weight_nodes:
            build.copy(node, values, name=lambda name: self._names[name])
        return values

    def _constants(self, build: Builder) -> dict[ir.Value, ir.Value]:
        constants = {}
        for name, value in self._graph.initializers.items():
            assert value.const_value is not None
            array = value.const_value.numpy()
            constants[value] = build.scope(f"step.{self._names[name]}").constant(array)
        return constants

    def _zeros(self, step: StepBuild, width: int) -> ir.Value:
        """A state (1, B, width) for a stack that has none."""
        build = step.build.root.scope(f"zeros.{width}")

        def make() -> ir.Value:
            batch = build.scope(".batch").op("Shape", step.projected[""], start=1, end=2)
            shape = build.scope(".shape").shape([1, batch, width])
            zero = ir.tensor(np.zeros(1, self._dtype))
            return build.op("ConstantOfShape", shape, value=zero)

        return build.once((build.root, "zeros", width), make)
