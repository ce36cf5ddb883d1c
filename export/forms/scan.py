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
from .cells import StepBuild, group_scope
from .layers import DirectionBuild, Walked, write_layers
from .shapes import batch_size, set_shapes, split_time


def scan(build: Builder, stack: Stack) -> list[ir.Value]:
    """-> output (T, B, D*P), final states (L*D, B, P), (L*D, B, H) ..."""
    return write_layers(build, stack, _walk)


def _walk(directions: Sequence[DirectionBuild]) -> Sequence[Walked]:
    """One `Scan`: states and sequences in, the final states and every output out."""
    names = directions[0].stack.state_names
    starts: list[ir.Value] = []
    for direction in directions:
        starts += _start_states(direction)
    sources: list[ir.Value] = []
    source_directions: list[int] = []
    final_names: list[str] = []
    sequence_names: list[str] = []
    sequence_directions: list[int] = []
    for direction in directions:
        for group in direction.projected:
            sources.append(_split_steps(direction, group))
            source_directions.append(int(direction.reverse))
        for name in names:
            final_names.append(f"{direction.name}{name}.end")
        for name in names[: direction.kept]:
            sequence_names.append(f"{direction.name}{name}.steps")
            sequence_directions.append(int(direction.reverse))
    results = directions[0].build.root.op_many(
        "Scan",
        *starts,
        *sources,
        outputs=[*final_names, *sequence_names],
        body=_body(directions),
        num_scan_inputs=len(sources),
        scan_input_directions=source_directions,
        scan_output_directions=sequence_directions,
    )
    finals = iter(results[: len(starts)])
    sequences = iter(results[len(starts) :])
    walks = []
    for direction in directions:
        kept = [_join(direction, index, next(sequences)) for index in range(direction.kept)]
        walks.append(Walked(kept, [next(finals) for _ in names]))
    return walks


def _start_states(direction: DirectionBuild) -> list[ir.Value]:
    """A `Scan` needs every first state: zeros where the stack has none."""
    states = []
    for state, width in zip(direction.states, direction.stack.sizes, strict=True):
        states.append(_zeros(direction, width) if state is None else state)
    return states


def _zeros(direction: DirectionBuild, width: int) -> ir.Value:
    """[B, width], or [1, B, width] for a derived cell; one for all directions of a stack."""
    stack = direction.stack
    assert stack.input.dtype is not None
    zero = ir.tensor(np.zeros(1, stack.input.dtype.numpy()))
    shape: list[int | ir.Value] = [1] if direction.cell.direction_axis else []
    shape += [batch_size(direction.build, stack), width]
    build = direction.build.root.scope(f"zeros.{width}")
    return build.once(
        (build.root, "zeros", width),
        lambda: build.op("ConstantOfShape", build.scope(".shape").shape(shape), value=zero),
    )


def _split_steps(direction: DirectionBuild, group: str) -> ir.Value:
    """What the input contributes to a group, [T*B, g*H] -> [T, B, g*H], or [T, 1, B, g*H] for a derived cell."""
    return split_time(
        group_scope(direction.build, group).scope("steps"),
        direction.stack,
        direction.projected[group],
        direction.width(group),
        direction_axis=direction.cell.direction_axis,
    )


def _join(direction: DirectionBuild, index: int, steps: ir.Value) -> ir.Value:
    """State `index` after every step, [T, B, P] or [T, 1, B, P] -> [T*B, P]"""
    build = direction.build.scope(direction.stack.state_names[index])
    return build.reshape(steps, [-1, direction.stack.sizes[index]])


def _body(directions: Sequence[DirectionBuild]) -> ir.Graph:
    """States, then sequences of every direction at one step -> states, then those kept."""
    states: list[ir.Value] = []
    sources: list[ir.Value] = []
    finals: list[ir.Value] = []
    kept: list[ir.Value] = []
    nodes: list[ir.Node] = []
    for direction in directions:
        body = direction.build.scope("step.").body()
        step = _step(direction, body)
        new_states = direction.cell.write(step)
        _set_step_shapes(direction, step.states, new_states, step.projected)
        states += [state for state in step.states if state is not None]
        sources += step.projected.values()
        finals += new_states
        # One value cannot be both a state and an output of the body.
        for index, state in enumerate(new_states[: direction.kept]):
            copied = body.scope(f"kept.{index}").op("Identity", state)
            copied.shape = state.shape
            copied.type = state.type
            kept.append(copied)
        nodes += body.nodes
    inputs = [*states, *sources]
    outputs = [*finals, *kept]
    # Not every tool reads a name with a dot here.
    name = f"{directions[0].name}step".replace(".", "_")
    return ir.Graph(inputs, outputs, nodes=nodes, name=name)


def _step(direction: DirectionBuild, body: Builder) -> StepBuild:
    """The one step that the body has; it reads the body's inputs."""
    dtype = direction.stack.input.dtype
    assert dtype is not None
    return StepBuild(
        build=body.scope("", step=0),
        direction=direction.build,
        groups=direction.groups,
        weight_hr=direction.weight_hr,
        own=direction.own,
        projected={
            group: group_scope(body, group).scope("x").input(dtype) for group in direction.projected
        },
        states=[body.scope(f"{name}.before").input(dtype) for name in direction.stack.state_names],
        limits=direction.limits,
    )


def _set_step_shapes(
    direction: DirectionBuild,
    before: Sequence[ir.Value | None],
    after: Sequence[ir.Value],
    projected: Mapping[str, ir.Value],
) -> None:
    """Note in the file what the inputs and outputs of the body are: tools that cannot infer it need it."""
    stack = direction.stack
    direction_axis = direction.cell.direction_axis
    for old, new, width in zip(before, after, stack.sizes, strict=True):
        states = [new] if old is None else [old, new]
        set_shapes(states, stack, width, direction_axis=direction_axis)
    for group, value in projected.items():
        set_shapes([value], stack, direction.width(group), direction_axis=direction_axis)
