"""Form "native": ONNX's own RNN, GRU and LSTM operators, one for each layer; any number of steps.

The operators order the gates differently from PyTorch and have no projection. A cell that ONNX has no operator for, or
an LSTM with `proj_size`, takes another form.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy_rnn.errors import ExportError
from deploy_rnn.nn import cells

from ..stack import DirectionWeights, Stack
from .builder import Attribute, Builder
from .shapes import zero


@dataclass(frozen=True)
class Operator:
    """An operator of ONNX.

    Attributes:
        op_type: its name.
        order: its gates, by their position among PyTorch's.
        attributes: with which it computes what PyTorch does.
        activations: of one direction, where the operator has no right default.
    """

    op_type: str
    order: Sequence[int]
    attributes: dict[str, int] = field(default_factory=dict)
    activations: Sequence[str] = ()


OPERATORS: dict[cells.Step, Operator] = {
    cells.tanh: Operator("RNN", [0], activations=["Tanh"]),
    cells.relu: Operator("RNN", [0], activations=["Relu"]),
    cells.gru: Operator("GRU", [1, 0, 2], {"linear_before_reset": 1}),  # z, r, n
    cells.lstm: Operator("LSTM", [0, 3, 1, 2]),  # i, o, f, g
}
"""PyTorch's step -> the operator."""


@dataclass(frozen=True)
class EmptyRows:
    """Rows of no steps, which can be among those whose lengths the model computes: what onnxruntime gives for them
    differs from operator to operator.

    Attributes:
        stack: whose rows these are.
        at_least_one: the lengths for the operator, (B,), int32.
        has_steps: whether a row has a step, [B, 1].
    """

    stack: Stack
    at_least_one: ir.Value
    has_steps: ir.Value

    @classmethod
    def of(cls, build: Builder, stack: Stack, lengths: ir.Value) -> "EmptyRows":
        zero_steps = build.scope("sequence_lens.0").constant(np.array(0, np.int32))
        one_step = build.scope("sequence_lens.1").constant(np.array(1, np.int32))
        has_steps = build.scope("has_steps").op("Greater", lengths, zero_steps)
        return cls(
            stack=stack,
            at_least_one=build.scope("sequence_lens.at_least_1").op("Max", lengths, one_step),
            has_steps=build.scope("has_steps.column").reshape(has_steps, [-1, 1]),
        )

    def clear(self, build: Builder, sequence: ir.Value) -> ir.Value:
        """[T, B, N] -> the same with zeros in empty rows."""
        return build.scope(".cleared").op(
            "Where", self.has_steps, sequence, zero(build, self.stack)
        )

    def keep_starts(
        self,
        build: Builder,
        finals: Sequence[ir.Value],
        starts: Sequence[ir.Value | None],
    ) -> list[ir.Value]:
        """Final states [D, B, H] ... -> the same with the first states of empty rows; None for zeros."""
        states = []
        for name, final, start in zip(self.stack.state_names, finals, starts, strict=True):
            first = zero(build, self.stack) if start is None else start
            states.append(build.scope(f"{name}_n.final").op("Where", self.has_steps, final, first))
        return states


def native(build: Builder, stack: Stack) -> list[ir.Value]:
    """-> output (T, B, D*H), final states (L*D, B, H) ...

    Raises:
        ExportError: a projection, a cell that ONNX has no operator for, or a dtype that onnxruntime lacks it for.
    """
    operator = operator_of(stack)
    directions = len(stack.layers[0])
    hidden = stack.sizes[0]
    names = stack.state_names
    lengths = stack.lengths and build.scope("sequence_lens").cast(stack.lengths, ir.DataType.INT32)
    empty_rows = None
    if lengths is not None and stack.computes_lengths:
        empty_rows = EmptyRows.of(build, stack, lengths)
        lengths = empty_rows.at_least_one
    starts = []
    for name, state in zip(names, stack.states, strict=True):
        starts.append(split_layers(build.scope(f"{name}0."), stack, state))
    attributes: dict[str, Attribute] = dict(operator.attributes)
    if operator.activations:
        attributes["activations"] = [*operator.activations] * directions
    sequence = stack.input
    finals = []
    for number, layer in enumerate(stack.layers):
        layer_build = build.scope(f"l{number}.")
        outputs, *layer_finals = layer_build.op_many(
            operator.op_type,
            sequence,
            *operator_weights(layer_build, layer, operator),
            lengths,
            *(layer_states[number] for layer_states in starts),
            outputs=["Y", *(f"{name}_n" for name in names)],
            hidden_size=hidden,
            direction="bidirectional" if directions == 2 else "forward",
            **attributes,
        )  # [T, D, B, H], [D, B, H] ...
        if empty_rows is not None:
            layer_starts = [layer_states[number] for layer_states in starts]
            layer_finals = empty_rows.keep_starts(layer_build, layer_finals, layer_starts)
        finals.append(layer_finals)
        turned = layer_build.scope("turned").op(
            "Transpose", outputs, perm=[0, 2, 1, 3]
        )  # [T, B, D, H]
        sequence = layer_build.scope("output").reshape(
            turned, [0, 0, directions * hidden]
        )  # [T, B, D*H]
    if empty_rows is not None:
        sequence = empty_rows.clear(build.scope("output"), sequence)
    results = [sequence]
    for index, name in enumerate(names):
        parts = [states[index] for states in finals]
        results.append(build.scope(f"{name}_n").concat(parts, axis=0))  # [L*D, B, H]
    return results


def operator_of(stack: Stack) -> Operator:
    operator = OPERATORS.get(stack.cell.step)
    if operator is None:
        raise ExportError("ONNX has no operator for this cell; use form='scan' or form='unrolled'.")
    if stack.layers[0][0].weight_hr is not None:
        raise ExportError(
            "ONNX's LSTM operator has no projection (`proj_size`); use form='scan' or form='unrolled'."
        )
    if stack.input.dtype != ir.DataType.FLOAT:
        raise ExportError(
            f"onnxruntime runs ONNX's {operator.op_type} operator in float32 only, and the layer is "
            f"{stack.input.dtype.numpy() if stack.input.dtype else 'unknown'}; use form='scan' or form='unrolled'."
        )
    return operator


def operator_weights(
    build: Builder, layer: Sequence[DirectionWeights], operator: Operator
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H] or None, gates in the operator's order."""
    directions = [build.scope("f."), build.scope("r.")][: len(layer)]

    def reorder(direction: Builder, name: str, value: ir.Value) -> ir.Value:
        return direction.scope(name).blocks(value, operator.order, len(operator.order))

    w = [
        reorder(direction, "W", weights.weight_ih)
        for direction, weights in zip(directions, layer, strict=True)
    ]
    r = [
        reorder(direction, "R", weights.weight_hh)
        for direction, weights in zip(directions, layer, strict=True)
    ]
    b = []
    for direction, weights in zip(directions, layer, strict=True):
        if weights.bias_ih is not None and weights.bias_hh is not None:
            biases = [
                reorder(direction, "Wb", weights.bias_ih),
                reorder(direction, "Rb", weights.bias_hh),
            ]
            b.append(direction.scope("B").concat(biases, axis=0))
    return (
        build.scope("W").stack(w),
        build.scope("R").stack(r),
        build.scope("B").stack(b) if b else None,
    )


def split_layers(build: Builder, stack: Stack, state: ir.Value | None) -> Sequence[ir.Value | None]:
    """(L*D, B, H) -> L times [D, B, H]; None for zeros"""
    if state is None:
        return [None] * len(stack.layers)
    return build.split(state, len(stack.layers))
