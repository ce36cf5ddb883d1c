"""Which axes of a model are open, and what there is to say of those that are not."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import nn

from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.model_errors import warn_user
from deploy_rnn.nn.recurrent import is_recurrent

from ..bare_layer import is_layer, layer_axes
from ..options import ExportOptions
from ..torch_onnx import Traced
from .capture import Tracer
from .related_axes import open_axes, with_free_axes, with_other_axes
from .tied_axes import fixed_axes, takes_other_sizes, with_tied_axes

Result = TypeVar("Result")

STEPS = re.compile(r"T\d*")
"""The names of axes that are steps, where nobody has named any."""


@dataclass
class FixedAxes:
    """What an export fixes of the axes that nobody has asked for.

    Attributes:
        names: of axes that would be dynamic otherwise.
        others: whether all axes are fixed but the batch and the steps.
        found_others: those that the latest attempt has found, as `axis 2 of x`.
    """

    names: list[str] = field(default_factory=list)
    others: bool = False
    found_others: list[str] = field(default_factory=list)


def with_fixed_axes(attempt: Callable[[FixedAxes], Result], options: ExportOptions) -> Result:
    """Call `attempt` with the axes to fix, which are found when the file is checked. The export then begins again, with
    a warning, if nobody has asked for them:

    1. Those that the model takes in the size of the example only, but for the batch.
    2. All but the batch and the steps, if there is no file with more, or it is not the model: torch.onnx may write a
       number for the size of a further axis.
    """
    fixed = FixedAxes()
    first_error: ExportError | None = None
    while True:
        try:
            result = attempt(fixed)
        except DynamicAxisError as error:
            if error.axis in (None, "B", *fixed.names) or options.dynamic_shapes is not None:
                raise
            fixed.names.append(str(error.axis))
            warn_user(f"{error.axis}: fixed at the size in the example, since {error.reason}.")
        except ExportError as error:
            if fixed.others or not fixed.found_others:
                raise
            fixed.others = True
            first_error = error
        else:
            if first_error is not None:
                warn_user(
                    f"{', '.join(fixed.found_others)}: fixed at the size in the example. With other sizes, "
                    f"{first_error}"
                )
            return result


def find_axes(
    model: nn.Module,
    tracer: Tracer,
    options: ExportOptions,
    *,
    time: bool,
    fixed: FixedAxes,
) -> list[Axes]:
    """What is to be dynamic in each tensor of the call: as asked for, or else what may be.

    Args:
        time: whether the steps are, where `dynamic_shapes` is None.
        fixed: what is not, of that which is found; gets the others that are.
    """
    call = tracer.call
    if is_layer(model):
        axes = layer_axes(model, call, options.dynamic_shapes, time=time)
    else:
        axes = _model_axes(tracer, call, options.dynamic_shapes, time=time, fixed=fixed)
        for name in fixed.names:
            axes = [_without(tensor_axes, name) for tensor_axes in axes]
    if not options.portable or options.dynamic_shapes is not None:
        return axes
    # The steps of a portable file may be open; of a model without layers, every size is a number.
    if not any(is_recurrent(module) for module in model.modules()):
        return [{} for _ in axes]
    return [_steps_only(tensor_axes) for tensor_axes in axes]


def capture_with(
    model: nn.Module, tracer: Tracer, axes: Sequence[Axes], options: ExportOptions
) -> Traced:
    """Capture the model with these axes, of which those that nobody has asked for may turn out to be fixed.

    Raises:
        DynamicAxisError: the model fixes an axis that was asked for, or the batch.
    """
    if is_layer(model) or options.dynamic_shapes is not None:
        return tracer.capture(axes)
    return _capture_found(tracer, axes)


def _model_axes(
    tracer: Tracer, call: ExampleCall, dynamic_shapes: Any, *, time: bool, fixed: FixedAxes
) -> list[Axes]:
    """For a whole model: `dynamic_shapes`, or the axes that are the batch (and steps) of its recurrent layers."""
    if dynamic_shapes is not None:
        return call.axes(dynamic_shapes)
    stack_axes = tracer.stack_axes
    if not any(stack_axes) and not tracer.has_layers:
        axes = open_axes(tracer.open_graph, call)
        _warn_of_fixed_axes(tracer.model, call, axes)
        return axes
    if not time:
        stack_axes = [_batch_only(tensor_axes) for tensor_axes in stack_axes]
    axes = with_tied_axes(tracer.model, call, stack_axes)
    axes = with_free_axes(tracer.open_graph, call, axes)
    if time and not fixed.others:
        takes = partial(takes_other_sizes, tracer.model, call)
        all_axes = with_other_axes(tracer.open_graph, call, axes, takes)
        fixed.found_others = _added(call, axes, all_axes)
        axes = all_axes
    names = {name for tensor_axes in axes for name in tensor_axes.values()}
    missing = []
    if "B" not in names:
        missing.append("a batch")
    if time and "T" not in names and tracer.has_steps:
        missing.append("steps")
    if missing:
        why_fixed = tracer.any_size.why_fixed
        warn_user(
            f"{'an' if names else 'every'} axis is fixed: the recurrent layers have {' and '.join(missing)}, but no "
            f"axis of the inputs is that by itself{why_fixed}; give `dynamic_shapes` if one should be dynamic. "
            f"{tracer.written_out}".rstrip()
        )
    elif time and not fixed.others:
        _warn_of_unnamed_axes(tracer, axes)
    return axes


def _capture_found(tracer: Tracer, axes: Sequence[Axes]) -> Traced:
    """Capture with axes that were found, not asked for: steps that the model fixes are fixed, with a warning.

    Raises:
        DynamicAxisError: the model fixes the batch.
    """
    try:
        return tracer.capture(axes)
    except DynamicAxisError as error:
        first_error = error
    names = {name for tensor_axes in axes for name in tensor_axes.values()}
    fixed = []
    # The steps come last.
    for name in sorted(names - {"B"}, key=lambda name: (STEPS.fullmatch(name) is not None, name)):
        fixed.append(name)
        axes = [_without(tensor_axes, name) for tensor_axes in axes]
        with suppress(DynamicAxisError):
            traced = tracer.capture(axes)
            warn_user(
                f"{', '.join(fixed)}: fixed at the size in the example, since {first_error.reason}."
            )
            return traced
    raise _not_open(first_error) from first_error


def _warn_of_fixed_axes(model: nn.Module, call: ExampleCall, axes: Sequence[Axes]) -> None:
    """Name what a model without layers takes in other sizes, and its file does not."""
    for number, axis in fixed_axes(model, call, axes):
        warn_user(
            f"{_axis(call, number, axis)} is fixed at {call.tensors[number].size(axis)}, the size in the "
            "example: PyTorch traces the model for this size only."
        )


def _warn_of_unnamed_axes(tracer: Tracer, axes: Sequence[Axes]) -> None:
    """Name what a model with layers takes in other sizes, and its file does not: the steps of a loop written out, and
    what PyTorch makes a number, such as the points of `linspace`."""
    call = tracer.call
    reason = tracer.written_out or "PyTorch traces the model for this size only."
    for number, axis in fixed_axes(tracer.model, call, axes):
        warn_user(
            f"{_axis(call, number, axis)} is fixed at {call.tensors[number].size(axis)}, the size in the "
            f"example, though the model takes others. {reason}"
        )


def _not_open(error: DynamicAxisError) -> DynamicAxisError:
    """The error for a batch axis that nobody has named: it is that of the recurrent layers, or goes with it."""
    return DynamicAxisError(
        f"{error.reason}, although it is the batch or the steps of the recurrent layers, or goes with them. "
        "Is it taken apart, as by .tolist() or a loop over its rows? Compute with the tensor itself, or name the axes "
        "that can be dynamic in `dynamic_shapes`."
    )


def _without(axes: Axes, name: str) -> Axes:
    return {axis: axis_name for axis, axis_name in axes.items() if axis_name != name}


def _added(call: ExampleCall, before: Sequence[Axes], after: Sequence[Axes]) -> list[str]:
    """The axes that have a name now and had none."""
    return [
        _axis(call, number, axis)
        for number, tensor_axes in enumerate(after)
        for axis in tensor_axes
        if axis not in before[number]
    ]


def _axis(call: ExampleCall, number: int, axis: int) -> str:
    """An axis of a tensor of the call, as a user would call it."""
    return f"axis {axis} of `{call.names[number]}`"


def _steps_only(axes: Axes) -> Axes:
    return {axis: name for axis, name in axes.items() if STEPS.fullmatch(str(name))}


def _batch_only(axes: Axes) -> Axes:
    return {axis: name for axis, name in axes.items() if name.startswith("B")}
