"""Form "scan": one ONNX `Scan` for each layer, whose body is one step of every direction; any number of steps.

    [T*B, g*H] -> [T, B, g*H] -> Scan, the nodes of the cell (see `cells`) in its body -> [T, B, P] -> [T*B, P]

The weights stay outside the body, so that a runtime can prepare them once. The reverse direction scans backwards. One
loop for both directions has half the iterations.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..stack import Stack
from .builder import Builder
from .cells import StepBuild, dotted
from .layers import DirectionBuild, Walked, size, to_steps, write_layers


def scan(build: Builder, stack: Stack) -> list[ir.Value]:
    """-> output (T, B, D*P), final states (L*D, B, P), (L*D, B, H) ..."""
    return write_layers(build, stack, _walk)


def _walk(sides: Sequence[DirectionBuild]) -> Sequence[Walked]:
    """One `Scan`: states and sequences in, the last states and every output out."""
    build, stack = sides[0].build, sides[0].stack
    states = [state for side in sides for state in _states(side)]
    sequences = [_sequences(side) for side in sides]
    results = build.op_many(
        "Scan",
        *states,
        *(rows for of_side in sequences for rows in of_side.values()),
        names=[
            *(f"{side.name}{kind}.end" for side in sides for kind in stack.state_names),
            *(f"{side.name}{kind}.steps" for side in sides for kind in stack.state_names[: side.kept]),
        ],
        body=_body(sides),
        num_scan_inputs=sum(map(len, sequences)),
        scan_input_directions=[int(side.reverse) for side, each in zip(sides, sequences, strict=True) for _ in each],
        scan_output_directions=[int(side.reverse) for side in sides for _ in range(side.kept)],
    )
    ends, steps = iter(results[: len(states)]), iter(results[len(states) :])
    return [
        (
            [
                build.reshape(next(steps), [-1, width], name=f"{side.name}{kind}")
                for kind, width in list(zip(stack.state_names, stack.sizes, strict=True))[: side.kept]
            ],
            [next(ends) for _ in stack.sizes],
        )
        for side in sides
    ]


def _states(side: DirectionBuild) -> Sequence[ir.Value]:
    """The first ones."""
    build, stack = side.build, side.stack
    return [
        state or _zeros(build, stack, [*_between(side), size(build, stack, 1), width])
        for state, width in zip(side.states, stack.sizes, strict=True)
    ]


def _sequences(side: DirectionBuild) -> Mapping[str, ir.Value]:
    """What is walked over: what the input contributes to each group."""
    return {
        dotted(group, "x"): to_steps(
            side.build,
            side.stack,
            rows,
            side.width(group),
            name=side.name + dotted(group, "steps"),
            between=_between(side),
        )
        for group, rows in side.projected.items()
    }


def _between(side: DirectionBuild) -> Sequence[int]:
    return [1] if side.cell.stacked else []


def _body(sides: Sequence[DirectionBuild]) -> ir.Graph:
    """States, then sequences of every direction at one step -> states, then those kept."""
    before: list[ir.Value] = []
    given: list[ir.Value] = []
    after: list[ir.Value] = []
    kept: list[ir.Value] = []
    nodes: list[ir.Node] = []
    for side in sides:
        body, dtype = side.build.body(f"{side.name}step."), side.stack.input.dtype
        assert dtype is not None
        states = [body.input(f"{kind}.before", dtype) for kind in side.stack.state_names]
        projected = {group: body.input(dotted(group, "x"), dtype) for group in side.projected}
        new = side.cell.write(StepBuild(body, side.groups, side.weight_hr, projected, states, "", 0))
        before += states
        given += projected.values()
        after += new
        # Values of their own: a state and an output cannot be one.
        kept += [body.op("Identity", state, name=f"kept.{kind}") for kind, state in enumerate(new[: side.kept])]
        nodes += body.nodes
    return ir.Graph([*before, *given], [*after, *kept], nodes=nodes, name=f"{sides[0].name}step")


def _zeros(build: Builder, stack: Stack, shape: Sequence[int | ir.Value]) -> ir.Value:
    """A first state for a stack that is given none."""
    assert stack.input.dtype is not None
    value = ir.tensor(np.zeros(1, stack.input.dtype.numpy()))
    name = f"zeros.{shape[-1]}"
    return build.once(
        (build, name, len(shape)),
        lambda: build.op("ConstantOfShape", build.shape(shape, name=f"{name}.shape"), name=name, value=value),
    )
