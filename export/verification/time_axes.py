"""Which axes are time: found by running the PyTorch model with one step more or fewer, not by size or name alone."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from deploy_rnn.checking.draws import ExampleInput, with_likely_lengths
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.layer_sizes import LayerSizes, layer_sizes
from deploy_rnn.checking.trials import Reference, resized
from deploy_rnn.nn.recurrent import is_recurrent

from ..onnx_file import OnnxFile
from .cases import example_inputs

Place = tuple[int, int]
"""Number of an input, and number of one of its axes."""


@dataclass(frozen=True)
class TimeAxes:
    """The time axes of a file.

    Attributes:
        names: the dynamic axes of its inputs that are steps of a recurrent layer, such as "T".
        outputs: for each output with a time axis, which of its axes that is.
    """

    names: tuple[str, ...] = ()
    outputs: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Change:
    """Another size for one axis, in every input that has it.

    Attributes:
        name: of a dynamic axis; None for a fixed one.
        old: its size in the example.
        new: its size in the changed call.
        places: where it occurs.
    """

    name: str | None
    old: int
    new: int
    places: Sequence[Place]

    @property
    def added(self) -> int:
        return self.new - self.old


@dataclass(frozen=True)
class _Ran:
    """One run of the model: the steps of each call of a recurrent layer, and the shape of each output."""

    steps: list[int]
    shapes: list[tuple[int, ...]]

    def added_steps(self, before: "_Ran") -> list[int]:
        """For each call of a layer, how many more steps it had than in the run before."""
        return [now - then for now, then in zip(self.steps, before.steps, strict=True)]

    def grown_axes(self, before: "_Ran", added: int) -> list[int | None]:
        """For each output, the first axis that has that many more elements than in the run before."""
        axes: list[int | None] = []
        for now, then in zip(self.shapes, before.shapes, strict=False):
            grown = [axis for axis, size in enumerate(then) if now[axis] - size == added]
            axes.append(grown[0] if grown else None)
        return axes


def time_axes(reference: Reference, call: ExampleCall, file: OnnxFile) -> TimeAxes:
    """Change one axis of the inputs at a time, and see whether a recurrent layer takes as many more or fewer steps.

    If so, the axis is time, and so is an axis of an output that changes by as much. A dynamic axis gets one step more;
    a fixed axis of as many elements as there are steps gets one fewer (1 gets 2). An axis that the model does not let
    change is not a time axis.
    """
    inputs = with_likely_lengths(example_inputs(call, file))
    names = []
    outputs: dict[str, int] = {}
    layers = [module for module in reference.model.modules() if is_recurrent(module)]
    with layer_sizes(layers) as calls, suppress(Exception):
        # Anything that the model's own code raises on the example is for the cases to report.
        example = _run(reference, _changed(call, inputs, None), calls)
        for change in _changes(inputs, example.steps):
            # The model may not take the new size.
            with suppress(Exception):
                ran = _run(reference, _changed(call, inputs, change), calls)
                if change.added not in ran.added_steps(example):
                    continue
                if change.name is not None:
                    names.append(change.name)
                grown_axes = ran.grown_axes(example, change.added)
                for spec, axis in zip(file.outputs, grown_axes, strict=False):
                    if axis is not None:
                        outputs.setdefault(spec.name, axis)
    return TimeAxes(tuple(names), outputs)


def _run(reference: Reference, call: ExampleCall, calls: list[LayerSizes]) -> _Ran:
    """`calls`: the list that `layer_sizes` fills."""
    calls.clear()
    outputs = reference.outputs(call)
    steps = [sizes.steps for sizes in calls]
    return _Ran(steps, [tuple(output.shape) for output in outputs])


def _changes(inputs: Sequence[ExampleInput], steps: Sequence[int]) -> Iterator[_Change]:
    """What to change in an example in which the recurrent layers take these numbers of steps.

    1. Each dynamic axis of the inputs.
    2. Each fixed one that has as many elements as a layer has steps, by itself: other inputs may have that size too.
    3. The same in all inputs at once: they may have to agree.
    """
    groups: dict[tuple[int | str, int], list[Place]] = {}
    for input_number, input in enumerate(inputs):
        for number, axis in enumerate(input.axes):
            # A dynamic axis is identified by its name, a fixed one by its number, and both by their size.
            if isinstance(axis, str):
                key = (axis, input.tensor.size(number))
                groups.setdefault(key, []).append((input_number, number))
            elif axis in steps and input.length_limit is None:
                groups.setdefault((number, axis), []).append((input_number, number))
    for (name_or_number, old), places in groups.items():
        # Case 1.
        if isinstance(name_or_number, str):
            yield _Change(name_or_number, old, old + 1, places)
            continue
        new = old - 1 if old > 1 else 2
        # Case 2.
        for place in places:
            yield _Change(None, old, new, [place])
        # Case 3.
        if len(places) > 1:
            yield _Change(None, old, new, places)


def _changed(
    call: ExampleCall, inputs: Sequence[ExampleInput], change: _Change | None
) -> ExampleCall:
    """The example with the change; rows that have lengths all have every step."""
    tensors = []
    for input_number, input in enumerate(inputs):
        shape = list(input.tensor.shape)
        if change is not None:
            for changed_input, axis in change.places:
                if changed_input == input_number:
                    shape[axis] = change.new
        tensor = resized(input.tensor, shape)
        if input.length_limit is not None:
            tensor = torch.full_like(tensor, _steps(inputs, input.length_limit, change))
        tensors.append(tensor)
    return call.with_tensors(tensors)


def _steps(inputs: Sequence[ExampleInput], limit: int | str, change: _Change | None) -> int:
    """The number of steps that `limit`, the name of an axis or its size, stands for."""
    if change is not None and limit in (change.name, change.old):
        return change.new
    if isinstance(limit, int):
        return limit
    limited = next(input for input in inputs if limit in input.axes)
    return limited.tensor.size(limited.axes.index(limit))
