"""Which axes are time: found by running the PyTorch model with one step more or fewer, not by size or name alone."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.trials import resized
from deploy_rnn.conversion import is_recurrent

from .report import Report


@dataclass(frozen=True)
class Time:
    """The time axes of a file.

    Attributes:
        names: the dynamic axes of its inputs that are steps of a recurrent layer, such as "T".
        axes: for each output with a time axis, which of its axes that is.
    """

    names: tuple[str, ...] = ()
    axes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Change:
    """Another size for one axis, in every input that has it.

    Attributes:
        name: of a dynamic axis; None for a fixed one.
        old, new: its size in the example, and here.
        places: (number of the input, axis) wherever it stands.
    """

    name: str | None
    old: int
    new: int
    places: tuple[tuple[int, int], ...]


def time_axes(model: nn.Module, call: ExampleCall, report: Report) -> Time:
    """Change one axis of the inputs at a time, and see whether a recurrent layer takes as many more or fewer steps.

    If so, the axis is time, and so is an axis of an output that changes by as much. A dynamic axis gets one step more;
    a fixed axis of as many elements as there are steps gets one fewer (1 gets 2). What the model refuses is no time
    axis.
    """
    watched = _Watched(model)
    names: list[str | None] = []
    axes: dict[str, int] = {}
    with suppress(Exception):  # whatever the model's own code raises; `cases` will say so
        steps, shapes = watched.run(_changed(call, report, None))
        for change in _changes(call, report, steps):
            with suppress(Exception):  # a size that the model cannot take
                steps_then, shapes_then = watched.run(_changed(call, report, change))
                by = change.new - change.old
                if by in [then - now for now, then in zip(steps, steps_then, strict=True)]:
                    names.append(change.name)
                    for spec, now, then in zip(report.outputs, shapes, shapes_then, strict=False):
                        for axis in (axis for axis, size in enumerate(now) if then[axis] - size == by):
                            axes.setdefault(spec.name, axis)
    return Time(tuple(name for name in names if name is not None), axes)


def _changes(call: ExampleCall, report: Report, steps: list[int]) -> Iterator[_Change]:
    """1. Each dynamic axis of the inputs.
    2. Each fixed one that has as many elements as a layer has steps, by itself: other inputs may have that size too.
    3. The same in all inputs at once: they may have to agree."""
    found: dict[tuple[int | str, int], list[tuple[int, int]]] = {}
    for number, (spec, tensor) in enumerate(zip(report.inputs, call.tensors, strict=False)):
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) or (size in steps and spec.name not in report.lengths):
                found.setdefault((size if isinstance(size, str) else axis, tensor.size(axis)), []).append(
                    (number, axis)
                )
    for (which, old), places in found.items():
        if isinstance(which, str):
            yield _Change(which, old, old + 1, tuple(places))  # Case 1.
            continue
        new = old - 1 if old > 1 else 2
        for place in places:
            yield _Change(None, old, new, (place,))  # Case 2.
        if len(places) > 1:
            yield _Change(None, old, new, tuple(places))  # Case 3.


def _changed(call: ExampleCall, report: Report, change: _Change | None) -> ExampleCall:
    """The example with the change; rows that have lengths all have every step."""
    tensors = []
    for number, (spec, tensor) in enumerate(zip(report.inputs, call.tensors, strict=False)):
        for axis in (axis for at, axis in (change.places if change else ()) if at == number):
            assert change is not None
            tensor = resized(tensor, [*tensor.shape[:axis], change.new, *tensor.shape[axis + 1 :]])
        if spec.name in report.lengths:
            tensor = torch.full_like(tensor, _steps(call, report, report.lengths[spec.name], change))
        tensors.append(tensor)
    return call.with_tensors(tensors)


def _steps(call: ExampleCall, report: Report, limit: int | str, change: _Change | None) -> int:
    """The number of steps that `limit`, an axis or its size, stands for."""
    if change is not None and limit in (change.name, change.old):
        return change.new
    if isinstance(limit, int):
        return limit
    pairs = zip(report.inputs, call.tensors, strict=False)
    return next(tensor.size(spec.shape.index(limit)) for spec, tensor in pairs if limit in spec.shape)


class _Watched:
    """A copy of a model that notes the number of steps each time one of its recurrent layers is called."""

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(model).eval()
        self._steps: list[int] = []
        for layer in filter(is_recurrent, self._model.modules()):
            layer.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, layer: Any, args: Any, kwargs: Any) -> None:
        input: Tensor | PackedSequence = args[0] if args else kwargs["input"]
        if isinstance(input, PackedSequence):
            self._steps.append(input.batch_sizes.size(0))
        else:
            self._steps.append(input.size(1 if layer.batch_first and input.dim() == 3 else 0))

    def run(self, call: ExampleCall) -> tuple[list[int], list[tuple[int, ...]]]:
        """The steps of each call of a layer, the shape of each output."""
        self._steps = []
        outputs = call.run(self._model)
        return self._steps, [tuple(output.shape) for output in outputs]
