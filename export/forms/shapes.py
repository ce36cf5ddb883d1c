"""Sizes and layouts that the forms share: T and B as numbers or tensors, [T*B, N] <-> [T, B, N]."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..stack import Stack
from .builder import Builder


def time_size(build: Builder, stack: Stack) -> int | ir.Value:
    """T, a tensor of one element where it is dynamic."""
    return _size(build.root.scope("T"), stack, axis=0)


def batch_size(build: Builder, stack: Stack) -> int | ir.Value:
    """B, a tensor of one element where it is dynamic."""
    return _size(build.root.scope("B"), stack, axis=1)


def _size(build: Builder, stack: Stack, axis: int) -> int | ir.Value:
    assert stack.input.shape is not None
    size = stack.input.shape[axis]
    if isinstance(size, int):
        return size
    key = (build.root, "size", axis)
    return build.once(key, lambda: build.op("Shape", stack.input, start=axis, end=axis + 1))


def zero(build: Builder, stack: Stack) -> ir.Value:
    """0 in the dtype of the stack."""
    assert stack.input.dtype is not None
    dtype = stack.input.dtype.numpy()
    number = np.zeros((), dtype)
    return build.once(("zero", dtype), lambda: build.root.scope("zero").constant(number))


def split_time(
    build: Builder, stack: Stack, rows: ir.Value, width: int, *, direction_axis: bool = False
) -> ir.Value:
    """[T*B, width] -> [T, B, width], or [T, 1, B, width] with the axis of directions that a derived cell has."""
    middle = [1] if direction_axis else []
    # One size may be left to the operator: that saves looking up B.
    if isinstance(stack.steps, int):
        return build.reshape(rows, [stack.steps, *middle, -1, width])
    steps = time_size(build, stack)
    batch = batch_size(build, stack)
    return build.reshape(rows, [steps, *middle, batch, width])


def set_shapes(
    values: Sequence[ir.Value], stack: Stack, width: int, *, direction_axis: bool
) -> None:
    """Note in the file that each value is [B, width], or [1, B, width], and of the stack's dtype.

    onnxruntime cannot infer it from T*B rows in T parts. It never uses a buffer of unknown size again, and looks
    through all of them for every node: 2,000 steps then take many times as long to open (docs/performance.md).
    """
    dtype = stack.input.dtype
    assert dtype is not None
    shape = [1, stack.batch, width] if direction_axis else [stack.batch, width]
    for value in values:
        value.shape = ir.Shape(shape)
        value.dtype = dtype
