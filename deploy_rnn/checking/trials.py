"""What a file is checked with: sizes for its dynamic axes, random inputs of these sizes, PyTorch's outputs for them."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.tolerance import Expected, as_array
from deploy_rnn.copying import copy_model, evaluation_copy
from deploy_rnn.errors import ExportError
from deploy_rnn.half_precision import half_precision

Axis = TypeVar("Axis")

SIZES = (1, 3, 7)
"""The sizes that each dynamic axis of an .onnx file is checked with, besides its size in the example."""


def size_assignments(axes: Sequence[Axis], sizes: Sequence[int]) -> list[dict[Axis, int]]:
    """Give every axis each of the sizes in turn; in one assignment two axes differ as long as there are sizes enough.

    >>> size_assignments(["B", "T"], [1, 3, 7])
    [{'B': 1, 'T': 3}, {'B': 3, 'T': 7}, {'B': 7, 'T': 1}]
    """
    if not axes:
        return [{}]
    assignments = []
    for first in range(len(sizes)):
        rotated = [*sizes[first:], *sizes[:first]]
        assignments.append({axis: rotated[number % len(sizes)] for number, axis in enumerate(axes)})
    return assignments


def draw(example: Tensor, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Draw a tensor from the example's own values, which the model is known to take.

    A constant float example, such as zeros, would hide a wrong weight: normal noise replaces it.
    """
    shape = list(shape)
    if example.is_floating_point() and constant(example):
        # Drawn in float64, so that a seed means the same values in every dtype.
        return torch.randn(shape, generator=random, dtype=torch.float64).to(example.dtype)
    values = example.detach().flatten()
    return values[torch.randint(values.numel(), shape, generator=random)]


def resized(example: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the example cut, or repeated from its beginning, along each axis."""
    for axis, size in enumerate(shape):
        old_size = example.size(axis)
        if size != old_size:
            example = example.index_select(axis, torch.arange(size) % old_size)
    return example


def constant(tensor: Tensor) -> bool:
    """Return whether all elements are equal."""
    first = tensor.flatten()[0]
    return bool((tensor == first).all())


class Reference:
    """The PyTorch model that a file must equal, and the same in float64 to measure its rounding.

    Attributes:
        model: a copy of the model in evaluation mode, on the model's own device; other code may run it, too.
        float64_error: why it did not run in float64, the last time that it did not, in one line; None if it always did.
    """

    def __init__(self, model: nn.Module) -> None:
        # A copy, since a forward may change the model, for example count its calls in a buffer.
        self.model = evaluation_copy(model)
        self._float64_model = copy_model(self.model).double()
        self.float64_error: str | None = None

    def outputs(self, call: ExampleCall) -> list[Tensor]:
        """Run the call. Raises: Exception: anything that the model's own code raises."""
        # A later call may overwrite what a model keeps and returns.
        return [output.clone() for output in call.run(self.model)]

    def half_precision(self, call: ExampleCall) -> str | None:
        """The coarsest half precision in which the call computes: "bfloat16", "float16" or None."""
        return half_precision(self.model, lambda: self.outputs(call))

    def expected(self, call: ExampleCall, outputs: Sequence[Tensor], label: str) -> list[Expected]:
        """Return `outputs`, those of the same call, with their rounding.

        Raises:
            ExportError: there is nothing to compare: no value is finite.
        """
        arrays = [as_array(output) for output in outputs]
        for array in arrays:
            if array.size and not np.isfinite(array).any():
                raise ExportError(
                    f"an output of the PyTorch model has no finite value on {label}: nothing to compare."
                )
        exact_arrays = self.run_in_float64(call) or arrays
        return [
            Expected.of(array, exact) for array, exact in zip(arrays, exact_arrays, strict=True)
        ]

    def run_in_float64(self, call: ExampleCall) -> list[np.ndarray] | None:
        """None if the model does not run in float64, for example because its code names another dtype."""
        tensors = [
            tensor.double() if tensor.is_floating_point() else tensor for tensor in call.tensors
        ]
        try:
            outputs = call.with_tensors(tensors).run(self._float64_model)
            return [as_array(output) for output in outputs]
        except Exception as error:  # anything that the model's own code raises
            # TorchScript has its own traceback before it.
            self.float64_error = str(error).strip().rpartition("\n")[2] or type(error).__name__
            return None
