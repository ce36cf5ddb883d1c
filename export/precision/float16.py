"""Weights in float16: which of them are rounded, in the file and in the model that it is compared with."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from deploy_rnn.errors import ExportError

LARGEST = torch.finfo(torch.float16).max
"""The largest number of float16."""


def round_weights(model: nn.Module) -> None:
    """Round every weight to the nearest number of float16, in place; its dtype stays float32.

    A weight is a parameter in float32 of two axes or more: a matrix, a table, a filter. Biases, norms and buffers are
    few numbers, and stay as they are.

    Raises:
        ExportError: a weight is larger than every number of float16.
    """
    with torch.no_grad():
        for name, weight in _weights(model):
            largest = float(weight.abs().max()) if weight.numel() else 0.0
            if largest > LARGEST:
                raise ExportError(
                    f"`{name}` has a weight of magnitude {largest:.3g}; precision='float16' stores up to {LARGEST:g}. "
                    "Leave `precision` out."
                )
            weight.copy_(weight.half())


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.dtype is torch.float32 and parameter.dim() >= 2:
            yield name, parameter
