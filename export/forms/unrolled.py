"""Form "unrolled": every step of both directions is written out, two nodes each, and the time axis is fixed.

The graph stays two-dimensional, with rows of step t at [t*B, (t+1)*B):

    [T*B, I] -> one Gemm for the input of all steps -> Split into T parts [B, H]
             -> per step one Gemm (h @ W_hh.T + part) and one activation -> one Concat -> [T*B, D*H]

so that no step pays for a Slice, Squeeze or Transpose. onnxruntime fuses each Gemm and its activation on the CPU.
"""

from collections.abc import Sequence

import onnx_ir as ir

from ..graph import Builder
from ..stack import Direction, Stack, fixed

ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


def unrolled(build: Builder, stack: Stack) -> tuple[ir.Value, ir.Value]:
    """Write the stack: -> output (T, B, D*H), h_n (L*D, B, H)."""
    assert isinstance(stack.steps, int)  # `lower` has seen to it
    hidden = stack.hidden_size
    directions = len(stack.layers[0])
    sequence = build.reshape(stack.input, [-1, fixed(stack.input, 2)], name="input")  # [T*B, I]
    starts = _starts(build, stack)
    finals: list[ir.Value] = []
    for number, layer in enumerate(stack.layers):
        sides = []
        for side, direction in enumerate(layer):
            name = f"l{number}{'fr'[side]}."
            states = _walk(build, stack, sequence, starts[len(finals)], direction, reverse=side == 1, name=name)
            finals.append(states[0] if side == 1 else states[-1])
            sides.append(build.concat(states, axis=0, name=f"{name}h"))  # [T*B, H]
        sequence = build.concat(sides, axis=1, name=f"l{number}.output")  # [T*B, D*H]
    output = build.reshape(sequence, [stack.steps, -1, directions * hidden], name="output")
    h_n = build.reshape(build.concat(finals, axis=0, name="finals"), [len(finals), -1, hidden], name="h_n")
    return output, h_n


def _walk(
    build: Builder,
    stack: Stack,
    sequence: ir.Value,
    h: ir.Value | None,
    direction: Direction,
    *,
    reverse: bool,
    name: str,
) -> Sequence[ir.Value]:
    """One direction over all steps: -> the state [B, H] of each step, in the order of time.

    1. Forward: step t reads the state of t-1.
    2. Reverse: step t reads the state of t+1; it is stored at t all the same.
    """
    assert isinstance(stack.steps, int)
    bias = build.add(direction.biases, name=f"{name}bias")
    projected = build.op("Gemm", sequence, direction.weight_ih, bias, name=f"{name}x", transB=1)  # [T*B, H]
    parts = build.split(projected, stack.steps, name=f"{name}x")
    states = list(parts)
    # Case 2: walk the steps backwards, but write to the same index.
    for t in reversed(range(stack.steps)) if reverse else range(stack.steps):
        total = parts[t]
        if h is not None:  # without h0 the first step has nothing to multiply
            total = build.op("Gemm", h, direction.weight_hh, parts[t], name=f"{name}g{t}", transB=1)
        h = states[t] = build.op(ACTIVATIONS[stack.nonlinearity], total, name=f"{name}h{t}")
    return states


def _starts(build: Builder, stack: Stack) -> Sequence[ir.Value | None]:
    """The first state [B, H] of each direction of each layer; None where it is zero."""
    count = sum(map(len, stack.layers))
    if stack.h0 is None:
        return [None] * count
    return build.split(build.reshape(stack.h0, [-1, stack.hidden_size], name="h0.rows"), count, name="h0.")
