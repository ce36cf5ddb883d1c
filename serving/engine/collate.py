"""Requests become one run, and its outputs theirs: padded, in the graph's layout, and cut apart again."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from deploy_rnn.bundle import Tensor

from .feeds import Feeds
from .signature import Signature, order


def collate(batch: Sequence[Feeds], signature: Signature, steps: int | None) -> dict[str, np.ndarray]:
    """One array for each input, in the graph's layout, though not always in the order of memory.

    Args:
        batch: requests that agree in all but rows and steps.
        steps: of the run; what a row lacks is zeros.
    """
    return {
        tensor.name: _joined([each.arrays[tensor.name] for each in batch], tensor, steps) for tensor in signature.inputs
    }


def _joined(arrays: Sequence[np.ndarray], tensor: Tensor, steps: int | None) -> np.ndarray:
    axes = order(tensor)
    rows = [array.shape[0] for array in arrays] if tensor.batch is not None else [1]
    shape = list(arrays[0].shape)
    if tensor.batch is not None:
        shape[0] = sum(rows)
    if tensor.batch is not None and tensor.time is not None and steps is not None:
        shape[1] = steps
    if len(arrays) == 1 and shape == list(arrays[0].shape):
        return arrays[0].transpose(np.argsort(axes))
    whole = np.zeros([shape[axes.index(axis)] for axis in range(len(axes))], arrays[0].dtype)
    outside = whole.transpose(axes)  # a view: batch-first
    for array, (start, stop) in zip(arrays, pairwise(accumulate(rows, initial=0)), strict=True):
        outside[(slice(start, stop), slice(array.shape[1])) if tensor.time is not None else slice(start, stop)] = array
    return whole


def split(
    outputs: Mapping[str, np.ndarray], batch: Sequence[Feeds], signature: Signature, steps: int | None
) -> list[dict[str, np.ndarray]]:
    """The outputs of each request, batch-first, without the steps that it did not have."""
    tensors = [tensor for tensor in signature.outputs if tensor.name in outputs]
    outside = {tensor.name: outputs[tensor.name].transpose(order(tensor)) for tensor in tensors}
    if len(batch) == 1 and batch[0].steps == steps:
        return [{name: np.ascontiguousarray(array) for name, array in outside.items()}]
    ends = pairwise(accumulate((each.rows for each in batch), initial=0))
    return [
        {
            tensor.name: _part(outside[tensor.name], slice(*rows), each.steps if tensor.time is not None else None)
            for tensor in tensors
        }
        for each, rows in zip(batch, ends, strict=True)
    ]


def _part(array: np.ndarray, rows: slice, steps: int | None) -> np.ndarray:
    """A copy, so that one request's answer does not keep those of the others in memory."""
    return (array[rows] if steps is None else array[rows, :steps]).copy()
