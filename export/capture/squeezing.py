"""Squeezes while a model is traced: an axis is dropped if its size in the example is 1, and kept otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deploy_rnn.model_errors import running_line

_SQUEEZES = (torch.squeeze, Tensor.squeeze, Tensor.squeeze_)

TRACING = "deploy_rnn.export.torch_onnx"
"""The module that calls the model while it is traced."""


class Squeezing(TorchFunctionMode):
    """Decides for each axis that a model squeezes what torch.onnx leaves open:

    1. Fixed at another size than 1: PyTorch keeps the axis, and no squeeze is written. (torch.onnx would write one,
       which no file may have.)
    2. Dynamic, and of size 1 in the example: it is fixed, since what follows has one axis less.
    3. Dynamic, and of another size in the example: it is kept, and noted: with size 1, PyTorch drops it.

    Attributes:
        fixed: the sizes of case 2, as torch.export writes them, such as "s7". (Told that such a size is 1, torch.export
            still calls it dynamic.)
        notes: for each squeeze of case 3, a sentence with the line of the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fixed: set[str] = set()
        self.notes: list[str] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _SQUEEZES:
            return func(*args, **kwargs)
        tensor, axes = _arguments(*args, **kwargs)
        if not _are_numbers(axes, tensor.dim()):
            return func(*args, **kwargs)
        every_axis = axes is None
        if axes is None:
            axes = range(tensor.dim())
        dropped = [axis for axis in axes if self._is_dropped(tensor, axis, every_axis)]
        if every_axis:
            return func(tensor)
        return func(tensor, dropped) if dropped else tensor

    def _is_dropped(self, tensor: Tensor, axis: int, every_axis: bool) -> bool:
        size: Any = tensor.size(axis)
        # Case 1.
        if isinstance(size, int):
            return size == 1
        example_size = size.node.hint if size.node.has_hint() else None
        # Case 2.
        if example_size == 1:
            self.fixed.add(str(size))
            return int(size) == 1
        # Case 3.
        if example_size is not None:
            self._note(tensor, axis, example_size, every_axis)
        return False

    def _note(self, tensor: Tensor, axis: int, size: int, every_axis: bool) -> None:
        line = running_line(TRACING)
        where = f"{line}: the squeeze" if line else "a squeeze of the model"
        others = "every axis of size 1" if every_axis else "its axes"
        advice = "name the axis to drop, as in `.squeeze(-1)`" if every_axis else "leave it out"
        self.notes.append(
            f"{where} drops {others}, and axis {axis % tensor.dim()} (of size {size} in the example) is dynamic: with "
            f"size 1 PyTorch goes on with one axis less, and a file does not; {advice}, or make that axis fixed."
        )


def _arguments(
    input: Tensor, dim: int | Sequence[int] | None = None
) -> tuple[Tensor, Sequence[int] | None]:
    """The tensor to squeeze and its axes as a list; None for every axis."""
    return input, [dim] if isinstance(dim, int) else dim


def _are_numbers(axes: Sequence[Any] | None, rank: int) -> bool:
    """Whether these are axes of a tensor; names of axes, and what PyTorch refuses, are left to PyTorch."""
    return all(isinstance(axis, int) and -rank <= axis < rank for axis in axes or ())
