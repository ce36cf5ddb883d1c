"""Pooling over axes of any size, where PyTorch's own code fixes them while a model is traced."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

OutputSize = int | None | Sequence[int | None]
"""How many places an adaptive pooling leaves of each axis; None for all."""

Reduce = Callable[[Tensor, Tensor | None], Tensor]
"""Reduces the last axis, which it keeps; with a mask, only the places in it."""


def max_pool_of_image(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`max_pool1d` over an image of height 1: torch.compile, too, fixes the steps of the other."""
    if return_indices:
        return F.max_pool1d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    window, step = _number(kernel_size), _number(stride or kernel_size)
    image = F.max_pool2d(
        input.unsqueeze(-2),
        (1, window),
        (1, step),
        (0, _number(padding)),
        (1, _number(dilation)),
        ceil_mode,
    )
    return image.squeeze(-2)


def spanned_axes(input: Tensor, kernel_size: Any, axes: int) -> tuple[int, ...]:
    """The axes of which a window has all places, if it has one place of all the others; () for other windows.

    Args:
        input: (..., sizes of the pooled axes), one of which is not a number at least.
        kernel_size: of the window, in each of them, or in all.
        axes: how many are pooled.
    """
    windows = list(kernel_size) if isinstance(kernel_size, Sequence) else [kernel_size]
    if len(windows) == 1:
        windows *= axes
    if all(isinstance(size, int) for size in windows):
        return ()
    spanned = []
    for axis, window in zip(range(-axes, 0), windows, strict=True):
        if statically_known_true(window == input.size(axis)):
            spanned.append(axis)
        elif not statically_known_true(window == 1):
            return ()
    return tuple(spanned)


def adaptive_average(input: Tensor, output_size: OutputSize, axes: int) -> Tensor:
    """`adaptive_avg_pool1d` and its like: the mean of each window, whose code in PyTorch may know one size only.

    Args:
        input: (..., sizes of the pooled axes).
        output_size: of each of them, or of all.
        axes: how many there are.
    """
    return _pool(input, output_size, axes, _mean)


def adaptive_maximum(input: Tensor, output_size: OutputSize, axes: int) -> Tensor:
    """`adaptive_max_pool1d` and its like, without the places of the maxima; arguments as above."""
    return _pool(input, output_size, axes, _max)


def _pool(input: Tensor, output_size: OutputSize, axes: int, reduce: Reduce) -> Tensor:
    """One axis after the other: a window over several axes is the product of theirs."""
    sizes = list(output_size) if isinstance(output_size, Sequence) else axes * [output_size]
    for axis, windows in zip(range(-axes, 0), sizes, strict=True):
        if windows is not None:
            input = _pool_last(input.transpose(axis, -1), windows, reduce).transpose(axis, -1)
    return input


def _pool_last(input: Tensor, windows: int, reduce: Reduce) -> Tensor:
    """Window i of w, of the T places of an axis, begins at floor(i * T / w) and ends before ceil((i + 1) * T / w)."""
    if windows == 1:
        return reduce(input, None)
    size = input.size(-1)
    window = torch.arange(windows, device=input.device).unsqueeze(-1)  # (w, 1)
    place = torch.arange(size, device=input.device)  # (T,)
    is_begun = (place + 1) * windows > window * size
    is_before_end = place * windows < (window + 1) * size
    return reduce(input.unsqueeze(-2), is_begun & is_before_end).squeeze(-1)  # (..., w)


def _mean(input: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return input.mean(-1, keepdim=True)
    return input.where(mask, 0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)


def _max(input: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        input = input.where(mask, -math.inf)
    return input.amax(-1, keepdim=True)


def _number(size: Any) -> int:
    """The kernel of a pool, for example, may be 3 or (3,)."""
    return int(size[0]) if isinstance(size, (tuple, list)) else int(size)
