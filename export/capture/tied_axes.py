"""Axes that must grow with a dynamic one though no graph says so: a mask (B, T) next to an input (B, T, I), or what is
known of the T + 4 steps of a past and a future.

torch.export sees two symbols where the model only works if both have the same size. So the model is run.
"""

from collections.abc import Iterator, Sequence

from torch import nn

from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.checking.trials import resized

from .unchanged import unchanged

AxisIndex = tuple[int, int]
"""The number of a tensor of the call, and an axis of it."""


def with_tied_axes(model: nn.Module, call: ExampleCall, axes: Sequence[Axes]) -> list[Axes]:
    """Return `axes` with each name also on the axes that have to grow with its own.

    Every named axis becomes one longer, and one shorter. If PyTorch refuses either call, further axes of the same size
    change too, one at a time, then all of them, then one of another size; the first set that PyTorch accepts is kept,
    and if there is none, nothing changes. An axis of another size has a name of its own. `model` is in evaluation mode,
    and stays as it is.
    """
    tied = [dict(tensor_axes) for tensor_axes in axes]
    names = dict.fromkeys(name for tensor_axes in axes for name in tensor_axes.values())
    with unchanged(model):
        for name in names:
            for candidate in _candidates(call, tied, name):
                if _runs(model, call, candidate, 1) and _runs(model, call, candidate, -1):
                    for number, axis in candidate:
                        if axis not in tied[number]:
                            tied[number][axis] = _name_of(call, candidate[0], (number, axis), name)
                    break
    return tied


def takes_other_sizes(model: nn.Module, call: ExampleCall, indices: Sequence[AxisIndex]) -> bool:
    """Whether PyTorch accepts the example with these axes one longer, and one shorter."""
    with unchanged(model):
        return _runs(model, call, indices, 1) and _runs(model, call, indices, -1)


def fixed_axes(model: nn.Module, call: ExampleCall, axes: Sequence[Axes]) -> list[AxisIndex]:
    """The axes without a name that the model takes longer, too: it is the graph that fixes them."""
    with unchanged(model):
        return [index for index in _unnamed(call, axes) if _runs(model, call, [index], 1)]


def _candidates(call: ExampleCall, axes: Sequence[Axes], name: str) -> Iterator[list[AxisIndex]]:
    """Sets of axes that may belong to one name: those that have it, these and one more of the same size, these and all
    the others of this size, these and one of another size."""
    with_name = [
        (number, axis)
        for number, tensor_axes in enumerate(axes)
        for axis, axis_name in tensor_axes.items()
        if axis_name == name
    ]
    first_number, first_axis = with_name[0]
    size = call.tensors[first_number].size(first_axis)
    unnamed = _unnamed(call, axes)
    same_size = [index for index in unnamed if _size(call, index) == size]
    yield with_name
    for index in same_size:
        yield [*with_name, index]
    yield [*with_name, *same_size]
    for index in unnamed:
        if index not in same_size:
            yield [*with_name, index]


def _unnamed(call: ExampleCall, axes: Sequence[Axes]) -> list[AxisIndex]:
    """The axes without a name."""
    return [
        (number, axis)
        for number, tensor in enumerate(call.tensors)
        for axis in range(tensor.dim())
        if axis not in axes[number]
    ]


def _name_of(call: ExampleCall, first: AxisIndex, index: AxisIndex, name: str) -> str:
    """`name` for an axis of the size of the first that has it, else a name of its own."""
    return name if _size(call, index) == _size(call, first) else call.axis_name(*index)


def _size(call: ExampleCall, index: AxisIndex) -> int:
    number, axis = index
    return call.tensors[number].size(axis)


def _runs(model: nn.Module, call: ExampleCall, changed: Sequence[AxisIndex], by: int) -> bool:
    """Whether PyTorch accepts the example with these axes longer by `by`; no axis becomes empty."""
    tensors = []
    for number, tensor in enumerate(call.tensors):
        shape = list(tensor.shape)
        for axis, size in enumerate(tensor.shape):
            if (number, axis) in changed:
                shape[axis] = max(1, size + by)
        tensors.append(resized(tensor, shape))
    try:
        call.with_tensors(tensors).run(model)
    except Exception:  # the model's own code may raise anything
        return False
    return True
