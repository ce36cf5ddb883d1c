"""What a file is tried on: sizes for its dynamic axes, random inputs of these sizes, what PyTorch makes of them."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.tolerance import Expected
from deploy_rnn.errors import ExportError

Axis = TypeVar("Axis")

SIZES = (1, 3, 7)
"""What each dynamic axis of an .onnx file is set to, besides its size in the example."""


def size_assignments(axes: Sequence[Axis], sizes: Sequence[int]) -> list[dict[Axis, int]]:
    """A size for each of `axes`, as many times as there are sizes; two axes never have the same if they can."""
    if not axes:
        return [{}]
    turns = range(len(sizes))
    return [{axis: sizes[(turn + number) % len(sizes)] for number, axis in enumerate(axes)} for turn in turns]


def draw(example: Tensor, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Values that the model takes: drawn from the example's own, unless that is a constant float tensor."""
    pool = example.detach().flatten()
    if example.is_floating_point() and constant(example):
        return torch.randn(list(shape), generator=random, dtype=torch.float64).to(example.dtype)
    return pool[torch.randint(pool.numel(), list(shape), generator=random)]


def resized(example: Tensor, shape: Sequence[int]) -> Tensor:
    """The example itself, cut or repeated from its beginning along each axis."""
    for axis, size in enumerate(shape):
        if size != example.size(axis):
            example = example.index_select(axis, torch.arange(size) % example.size(axis))
    return example


def constant(tensor: Tensor) -> bool:
    """Whether all its elements are equal."""
    return bool((tensor == tensor.flatten()[0]).all())


class Reference:
    """The PyTorch model, and the same in float64 where it runs so."""

    def __init__(self, model: nn.Module) -> None:
        # A copy: a forward may count its calls in a buffer.
        self.model = copy.deepcopy(model).eval()
        self._exact = copy.deepcopy(self.model).double()

    def outputs(self, call: ExampleCall) -> list[Tensor]:
        """Raises: Exception: whatever the model's own code raises."""
        return call.run(self.model)

    def expected(self, call: ExampleCall, outputs: list[Tensor], label: str) -> list[Expected]:
        """`outputs`, those of the same call, with their rounding.

        Raises:
            ExportError: there is nothing to compare: numpy has not the dtype, or no value is finite.
        """
        if unknown := [output.dtype for output in outputs if output.dtype is torch.bfloat16]:
            raise ExportError(f"an output of the model is {unknown[0]}, which numpy has not; let it return .float().")
        arrays = [output.numpy() for output in outputs]
        if any(array.size and not np.isfinite(array).any() for array in arrays):
            raise ExportError(f"an output of the PyTorch model has no finite value on {label}: nothing to compare.")
        return [Expected.of(*each) for each in zip(arrays, self._in_float64(call) or arrays, strict=True)]

    def _in_float64(self, call: ExampleCall) -> list[np.ndarray] | None:
        """None if the model does not run so, having a dtype written into its code."""
        wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in call.tensors]
        try:
            return [output.numpy() for output in call.with_tensors(wide).run(self._exact)]
        except Exception:  # whatever the model's own code raises
            return None
