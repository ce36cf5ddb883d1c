"""Form "scan": one ONNX `Scan` for each direction of each layer, whose body is one step; any number of steps.

    [T*B, g*H] -> [T, B, g*H] -> Scan, the nodes of the cell (see `cells`) in its body -> [T, B, P] -> [T*B, P]

The weights stay outside the body, so that a runtime can prepare them once. The reverse direction scans backwards.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..cells import Step, dotted
from ..graph import Builder
from ..stack import Stack
from .layers import Side, size, to_steps, write_layers


def scan(build: Builder, stack: Stack) -> list[ir.Value]:
    """-> output (T, B, D*P), final states (L*D, B, P), (L*D, B, H) ..."""
    return write_layers(build, stack, _walk)


def _walk(side: Side) -> tuple[ir.Value, Sequence[ir.Value]]:
    """One `Scan`: states and sequences in, the last states and every output out."""
    build, stack, name = side.build, side.stack, side.name
    between = [1] if side.cell.stacked else []
    sequences = {
        group: to_steps(build, stack, rows, side.width(group), name=name + dotted(group, "steps"), between=between)
        for group, rows in side.projected.items()
    }
    states = [
        state or _zeros(build, stack, [*between, size(build, stack, 1), width])
        for state, width in zip(side.states, stack.sizes, strict=True)
    ]
    walked = [*sequences.values()]
    if side.mask is not None:
        mask = side.mask
        walked.append(
            build.once(
                (build, "mask", *between),
                lambda: to_steps(build, stack, mask, 1, name="mask.steps", between=between),
            )
        )
    direction = int(side.reverse)
    *finals, outputs = build.op_many(
        "Scan",
        *states,
        *walked,
        names=[*(f"{name}{kind}.last" for kind in stack.state_names), f"{name}h.steps"],
        body=_body(side, list(sequences)),
        num_scan_inputs=len(walked),
        scan_input_directions=[direction] * len(walked),
        scan_output_directions=[direction],
    )
    return build.reshape(outputs, [-1, stack.sizes[0]], name=f"{name}h"), finals


def _body(side: Side, groups: Sequence[str]) -> ir.Graph:
    """States, what the input contributes to each group at one step, whether that step counts -> states, output."""
    stack, body = side.stack, side.build.body(f"{side.name}step.")
    dtype, kinds = stack.input.dtype, stack.state_names
    assert dtype is not None
    before = [body.input(f"{kind}.before", dtype) for kind in kinds]
    projected = {group: body.input(dotted(group, "x"), dtype) for group in groups}
    inputs = [*before, *projected.values()]
    after = side.cell.write(Step(body, side.groups, side.weight_hr, projected, before, "", 0))
    if side.mask is None:
        # Its own value: a state and an output cannot be one.
        output = body.op("Identity", after[0], name="output")
    else:
        output, within = after[0], body.input("within", ir.DataType.BOOL)
        inputs.append(within)
        after = [
            body.op("Where", within, new, old, name=f"{kind}.kept")
            for kind, new, old in zip(kinds, after, before, strict=True)
        ]
    return ir.Graph(inputs, [*after, output], nodes=body.nodes, name=f"{side.name}step")


def _zeros(build: Builder, stack: Stack, shape: Sequence[int | ir.Value]) -> ir.Value:
    """A first state for a stack that is given none."""
    assert stack.input.dtype is not None
    value = ir.tensor(np.zeros(1, stack.input.dtype.numpy()))
    name = f"zeros.{shape[-1]}"
    return build.once(
        (build, name, len(shape)),
        lambda: build.op("ConstantOfShape", build.shape(shape, name=f"{name}.shape"), name=name, value=value),
    )
