"""Axes that must agree with a dynamic one though no graph says so: those of a mask (B, T) beside an input (B, T, I).

torch.export sees two symbols where the model only works if both are the same size. So the model is run.
"""

import copy
from collections.abc import Iterator, Sequence

from torch import nn

from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.checking.trials import resized

Place = tuple[int, int]
"""The number of a tensor of the call, and an axis of it."""


def with_tied_axes(model: nn.Module, call: ExampleCall, axes: Sequence[Axes]) -> list[Axes]:
    """`axes`, each name also where another axis of the example's size has to grow with it.

    Every named axis becomes one longer, and one shorter. If PyTorch refuses either call, others of that size change
    too, one at a time, then all of them; the first that PyTorch takes is kept, and if it takes none, nothing is.
    """
    found, runner = [dict(each) for each in axes], copy.deepcopy(model).eval()
    for name in dict.fromkeys(name for each in axes for name in each.values()):
        for places in _candidates(call, found, name):
            if all(_runs(runner, call, places, by) for by in (1, -1)):
                for number, axis in places:
                    found[number][axis] = name
                break
    return found


def _candidates(call: ExampleCall, axes: Sequence[Axes], name: str) -> Iterator[list[Place]]:
    named = [(number, axis) for number, each in enumerate(axes) for axis in each if each[axis] == name]
    size = call.tensors[named[0][0]].size(named[0][1])
    others = [
        (number, axis)
        for number, tensor in enumerate(call.tensors)
        for axis, other in enumerate(tensor.shape)
        if other == size and axis not in axes[number]
    ]
    yield named
    yield from ([*named, other] for other in others)
    yield [*named, *others]


def _runs(model: nn.Module, call: ExampleCall, places: Sequence[Place], by: int) -> bool:
    """Whether PyTorch takes the example with these axes longer by so many; none becomes empty."""
    tensors = [
        resized(tensor, [max(1, size + by * ((number, axis) in places)) for axis, size in enumerate(tensor.shape)])
        for number, tensor in enumerate(call.tensors)
    ]
    try:
        call.with_tensors(tensors).run(model)
    except Exception:  # whatever the model's own code raises
        return False
    return True
