"""Collate requests into one padded batch, and split its outputs back."""

from collections.abc import Sequence

import numpy as np

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import RunError

from .arrays import Arrays, Outputs
from .feeds import Feeds
from .signature import Layout, Signature


def collate(
    batch: Sequence[Feeds],
    signature: Signature,
    steps: int | None,
) -> Arrays:
    """Return one array for each input, in the graph's layout; it may be a view that is not contiguous.

    Args:
        batch: requests that agree in all sizes but rows and steps.
        signature: of the model.
        steps: of the run; rows that are shorter are padded with zeros, or with the indices that are next to 0.
    """
    arrays = {}
    for tensor in signature.inputs:
        parts = [feeds.arrays[tensor.name] for feeds in batch]
        layout = signature.layouts[tensor.name]
        padding = signature.nearest(tensor.name, 0)
        arrays[tensor.name] = _collate_tensor(parts, tensor, layout, steps, padding)
    return arrays


def _collate_tensor(
    parts: Sequence[np.ndarray],
    tensor: Tensor,
    layout: Layout,
    steps: int | None,
    padding: int,
) -> np.ndarray:
    first = parts[0]
    shape = list(first.shape)  # [B, T, ...]; in the graph's layout if there is no batch axis
    if tensor.batch is not None:
        shape[0] = sum(part.shape[0] for part in parts)
        if tensor.time is not None and steps is not None:
            shape[1] = steps
    if len(parts) == 1 and shape == list(first.shape):
        return first.transpose(layout.to_graph)
    graph_shape = [shape[axis] for axis in layout.to_graph]
    whole = np.zeros(graph_shape, first.dtype)
    if padding:
        whole.fill(padding)
    client_view = whole.transpose(layout.to_client)  # (B, T, ...)
    start = 0
    for part in parts:
        stop = start + part.shape[0]
        if tensor.time is None:
            client_view[start:stop] = part
        else:
            client_view[start:stop, : part.shape[1]] = part
        start = stop
    return whole


def split(
    results: Arrays,
    batch: Sequence[Feeds],
    signature: Signature,
    steps: int | None,
) -> list[Outputs]:
    """Return the outputs of each request, batch-first, without the steps that it did not have.

    Args:
        results: what the graph gave, in its layout.
        batch, signature, steps: as for `collate`.

    Raises:
        RunError: an output lacks an axis that the graph declares, and cannot be split.
    """
    is_whole = len(batch) == 1 and batch[0].steps == steps
    arrays = {}
    for tensor in signature.outputs:
        if tensor.name in results:
            array = results[tensor.name]
            layout = signature.layouts[tensor.name]
            arrays[tensor.name] = _batch_first(array, tensor, layout, is_whole)  # (B, T, ...)
    if is_whole:
        # `ascontiguousarray` would give a tensor of no axes one.
        return [{name: np.asarray(array, order="C") for name, array in arrays.items()}]
    answers = []
    start = 0
    for feeds in batch:
        stop = start + feeds.rows
        outputs = {}
        for name, array in arrays.items():
            part = array[start:stop]
            if name in signature.outputs_over_time:
                part = part[:, : feeds.steps]
            if name in signature.trimmed_axes:
                # The longest row of the run may be that of another request.
                part = _trim(part, signature.trimmed_axes[name], _longest_row(feeds, signature))
            # A view would keep the answers of all requests in memory.
            outputs[name] = part.copy()
        answers.append(outputs)
        start = stop
    return answers


def _batch_first(array: np.ndarray, tensor: Tensor, layout: Layout, is_whole: bool) -> np.ndarray:
    """Return a graph's output in the layout of clients."""
    if array.ndim == len(layout.to_client):
        return array.transpose(layout.to_client)
    # A model that calls `.squeeze()` drops an axis of size 1, here and in PyTorch.
    if is_whole and layout.is_kept:
        return array
    raise RunError(
        f"output `{tensor.name}` has shape {list(array.shape)}, the graph declares {tensor}: the model drops an axis "
        "of size 1, as `.squeeze()` does; name the axis that it should drop, as in `.squeeze(-1)`."
    )


def _trim(array: np.ndarray, axis: int, size: int | None) -> np.ndarray:
    before = (slice(None),) * axis
    return array[(*before, slice(size))]


def _longest_row(feeds: Feeds, signature: Signature) -> int | None:
    """Return the steps of the longest row of a request; None where not exactly one input tells."""
    if len(signature.lengths) != 1:
        return None
    (name,) = signature.lengths
    return int(feeds.arrays[name].max())
