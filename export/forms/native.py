"""Form "native": ONNX's own RNN, GRU and LSTM operators, one for each layer; any number of steps.

The operators order the gates otherwise than PyTorch, have no projection, and are all there is: a cell of one's own, or
an LSTM with `proj_size`, takes another form.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from deploy_rnn.errors import ExportError
from deploy_rnn.nn import cells

from ..stack import DirectionWeights, Stack
from .builder import Builder


@dataclass(frozen=True)
class Operator:
    """An operator of ONNX.

    Attributes:
        op_type: its name.
        order: its gates, by their place among PyTorch's.
        attributes: what makes it PyTorch's.
        activations: of one direction, where it must be told.
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


def native(build: Builder, stack: Stack) -> list[ir.Value]:
    """-> output (T, B, D*H), final states (L*D, B, H) ...

    Raises:
        ExportError: a projection, a cell that ONNX has no operator for, or a dtype that onnxruntime lacks it for.
    """
    operator = _operator(stack)
    directions, hidden = len(stack.layers[0]), stack.sizes[0]
    names = stack.state_names
    lengths = stack.lengths and build.cast(stack.lengths, ir.DataType.INT32, name="sequence_lens")
    starts = [_by_layer(build, stack, state, f"{name}0.") for name, state in zip(names, stack.states, strict=True)]
    sequence, finals = stack.input, []
    for number, layer in enumerate(stack.layers):
        name = f"l{number}."
        outputs, *last = build.op_many(
            operator.op_type,
            sequence,
            *_weights(build, layer, operator, name),
            lengths,
            *(state[number] for state in starts),
            names=[f"{name}Y", *(f"{name}{kind}_n" for kind in names)],
            hidden_size=hidden,
            direction="bidirectional" if directions == 2 else "forward",
            **operator.attributes,
            **({"activations": list(operator.activations) * directions} if operator.activations else {}),
        )  # [T, D, B, H], [D, B, H] ...
        finals.append(last)
        turned = build.op("Transpose", outputs, name=f"{name}turned", perm=[0, 2, 1, 3])  # [T, B, D, H]
        sequence = build.reshape(turned, [0, 0, directions * hidden], name=f"{name}output")
    kinds = zip(names, zip(*finals, strict=True), strict=True)
    return [sequence, *(build.concat(each, axis=0, name=f"{name}_n") for name, each in kinds)]


def _operator(stack: Stack) -> Operator:
    operator = OPERATORS.get(stack.cell.step)
    if operator is None:
        raise ExportError("ONNX has no operator for this cell; use form='scan' or form='unrolled'.")
    if stack.layers[0][0].weight_hr is not None:
        raise ExportError("ONNX's LSTM operator has no projection (`proj_size`); use form='scan' or form='unrolled'.")
    if stack.input.dtype != ir.DataType.FLOAT:
        raise ExportError(
            f"onnxruntime runs ONNX's {operator.op_type} operator in float32 only, and the layer is "
            f"{stack.input.dtype.numpy() if stack.input.dtype else 'unknown'}; use form='scan' or form='unrolled'."
        )
    return operator


def _weights(
    build: Builder, layer: Sequence[DirectionWeights], operator: Operator, name: str
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H] or None, gates in the operator's order."""

    def ordered(value: ir.Value, what: str, side: int) -> ir.Value:
        return build.blocks(value, operator.order, len(operator.order), name=f"{name}{'fr'[side]}.{what}")

    w = [ordered(direction.weight_ih, "W", side) for side, direction in enumerate(layer)]
    r = [ordered(direction.weight_hh, "R", side) for side, direction in enumerate(layer)]
    b = [
        build.concat([ordered(bias_ih, "Wb", side), ordered(bias_hh, "Rb", side)], axis=0, name=f"{name}{'fr'[side]}.B")
        for side, (bias_ih, bias_hh) in enumerate((direction.bias_ih, direction.bias_hh) for direction in layer)
        if bias_ih is not None and bias_hh is not None
    ]
    return (
        build.stack(w, name=f"{name}W"),
        build.stack(r, name=f"{name}R"),
        build.stack(b, name=f"{name}B") if b else None,
    )


def _by_layer(build: Builder, stack: Stack, state: ir.Value | None, name: str) -> Sequence[ir.Value | None]:
    """(L*D, B, H) -> L times [D, B, H]; None for zeros"""
    layers = len(stack.layers)
    return [None] * layers if state is None else build.split(state, layers, name=name)
