"""`AnySize`: functions of PyTorch that torch.export takes for the example's sizes only, or not at all, in others."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Self
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._export import non_strict_utils
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from deploy_rnn.known_numbers import KnownNumbers
from deploy_rnn.model_errors import running_line
from deploy_rnn.pooling import (
    adaptive_average,
    adaptive_maximum,
    max_pool_of_image,
    spanned_axes,
)


class AnySize(TorchFunctionMode):
    """While a model is traced, these of its calls become calls of other functions, with the same numbers:

    1. A maximum over windows of a sequence, whose code in PyTorch reads the number of steps: over an image of height 1.
    2. Circular padding, whose code writes into a larger tensor and asks whether there is more than one row: the ends
       are joined to the tensor.
    3. A clamp between a tensor of one number and a number, which PyTorch takes for two numbers, and which has no
       operator: between two tensors. Nor has one between a whole number and a float: between two floats.
    4. A number out of `torch.arange` of numbers, by `tolist` or a loop over it: torch.export takes it for unknown. So
       it does one that is computed from buffers and sizes, as a padding is (`KnownNumbers`).
    5. Python's `max` or `min` of one tensor, such as the lengths: torch.export takes it for one of two numbers.
    6. A list of tensors that is padded, or packed, keeps its steps: no file takes any number of rows as a list.
    7. A distribution of torch.distributions does not check the values of its parameters, unless the model asks for it.
    8. `one_hot` of as many classes as an axis has, which fixes that axis: a comparison with every class.
    9. Adaptive pooling over an open axis, which would have the windows of the example: every window has a mask.
    10. Pooling with a window that is a whole open axis, whose code in PyTorch wants a number: a mean, or a maximum.

    Args:
        inside: the module that calls the model, for the lines of the model.
        model: what is traced.

    Attributes:
        taken_apart: the lines of the model that take an open axis apart, as a loop over it does, and so fix its size.
        padded_lists: the lines of the model that make one tensor of a list with a tensor for each row.
    """

    def __init__(self, inside: str, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self.taken_apart: list[str] = []
        self.padded_lists: list[str] = []
        self._inside = inside
        self.known = KnownNumbers()
        self._ranges: MutableMapping[Tensor, range] = WeakTensorKeyDictionary()  # of `torch.arange`

    def __enter__(self) -> Self:
        self._patches: list[Any] = [
            # Case 5.
            mock.patch.object(non_strict_utils, "_tensor_min_max", _max_or_min),
            # Case 7.
            mock.patch.object(Distribution, "_validate_args", False),
        ]
        for patch in self._patches:
            patch.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for patch in reversed(self._patches):
            patch.stop()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Case 4.
        if func in _TAKING and args[0] in self._ranges:
            return _TAKING[func](self._ranges[args[0]][0])
        if func in _TAKING and args[0] in self.known:
            return _TAKING[func](self.known[args[0]])
        if func is F.pad and len(args) > 1 and isinstance(args[1], (tuple, list)):
            args = (args[0], tuple(self.known.in_place_of(args[1])), *args[2:])
        replacement = _REPLACEMENTS.get(func)
        if replacement is not None:
            return replacement(func, *args, **kwargs)
        if func in _UNBINDING:
            self._note_axis(*args, **kwargs)
        if func is _PAD_LIST:
            self._fix_list(args[0])
        result = func(*args, **kwargs)
        self.known.note(func, args, kwargs, result)
        if func is torch.arange and _are_whole(args) and not result.is_floating_point():
            self._ranges[result] = range(*args)
        elif func in _UNBINDING and args[0] in self._ranges:
            for tensor, number in zip(result, self._ranges[args[0]], strict=True):
                self.known[tensor] = number
        return result

    @property
    def why_fixed(self) -> str:
        """To follow "the model fixes it at 2": what in the model fixes an axis; empty if that is not known.

        1. A line takes an axis apart.
        2. TorchScript code reads a size, which is a number there.
        3. A list has a tensor for each row.
        """
        # Case 3.
        if self.padded_lists:
            return (
                f" (pad_sequence or pack_sequence in {self.padded_lists[0]} takes a list with a tensor for each row, "
                "and a file takes as many as the example has: let the model take one padded tensor, and the lengths "
                "of its rows)"
            )
        if self.taken_apart:
            return f" (taken apart in {self.taken_apart[0]}, as by a loop over rows or unpack_sequence)"
        # Case 2.
        for name, part in self._model.named_modules():
            sizes = size_reading(part) if isinstance(part, torch.jit.ScriptModule) else ""
            if sizes:
                return (
                    f" (the scripted part `{name}` reads {sizes}, and PyTorch traces what TorchScript reads as a "
                    "number: let the model have that part unscripted)"
                )
        return ""

    def _fix_list(self, sequences: Sequence[Tensor]) -> None:
        # Case 6.
        for sequence in sequences:
            int(sequence.size(0))
        line = running_line(self._inside)
        if line and line not in self.padded_lists:
            self.padded_lists.append(line)

    def _note_axis(self, tensor: Tensor, dim: int = 0) -> None:
        line = running_line(self._inside)
        if line and not isinstance(tensor.size(dim), int) and line not in self.taken_apart:
            self.taken_apart.append(line)


def size_reading(part: torch.jit.ScriptModule) -> str:
    """Return which size the code of a scripted part reads first, such as "axis 0 of `x`"; empty if it reads none."""
    graph = getattr(part, "inlined_graph", None)
    if graph is None:  # it has no `forward`
        return ""
    for kind in ("aten::size", "aten::len"):
        for node in graph.findAllNodes(kind):
            tensor, *axes = node.inputs()
            if not isinstance(tensor.type(), torch._C.TensorType):
                continue
            # TorchScript counts the values of one name, as in `x.1`, and has only numbers for the others.
            name = tensor.debugName().partition(".")[0]
            described = "a tensor" if name.isdigit() else f"`{name}`"
            axis = axes[0].toIValue() if axes else None
            if kind == "aten::len":
                axis = 0
            return f"the sizes of {described}" if axis is None else f"axis {axis} of {described}"
    return ""


def _max_pool(func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    # Case 1.
    if isinstance(input.shape[-1], int):
        return func(input, *args, **kwargs)
    return max_pool_of_image(input, *args, **kwargs)


def _call(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _pool(
    axes: int, reduce: Callable[..., Tensor], other: Callable[..., Any] = _call
) -> Callable[..., Any]:
    """Case 10, over the last `axes` axes; `other` replaces every other pooling."""

    def replacement(
        func: Callable[..., Any],
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # Defaults are handed on by the functions of torch.nn.functional.
        is_plain = padding == 0 and not args and all(value in (0, 1) for value in kwargs.values())
        spanned = spanned_axes(input, kernel_size, axes) if is_plain else ()
        if spanned and not kwargs.get("return_indices"):
            return reduce(input, spanned, keepdim=True)
        return other(func, input, kernel_size, stride or kernel_size, padding, *args, **kwargs)

    return replacement


def _adaptive_pool(axes: int, pool: Callable[..., Tensor]) -> Callable[..., Any]:
    """Case 9, over the last `axes` axes."""

    def replacement(
        func: Callable[..., Any],
        input: Tensor,
        output_size: Any,
        return_indices: bool = False,
    ) -> Any:
        is_open = any(not isinstance(size, int) for size in input.shape[-axes:])
        if return_indices:
            return func(input, output_size, return_indices)
        return pool(input, output_size, axes) if is_open else func(input, output_size)

    return replacement


def _pad(
    func: Callable[..., Any],
    input: Tensor,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Any:
    is_open = any(not isinstance(size, int) for size in input.shape)
    are_ends = all(isinstance(count, int) and count >= 0 for count in pad)
    if mode != "circular" or not is_open or not are_ends:
        return func(input, pad, mode, value)
    # Case 2. The last axis comes first in `pad`.
    for number in range(len(pad) // 2):
        axis = input.dim() - 1 - number
        before, after = pad[2 * number], pad[2 * number + 1]
        size = input.size(axis)
        torch._check(before <= size)
        torch._check(after <= size)
        parts = [input.narrow(axis, size - before, before)] if before else []
        parts.append(input)
        if after:
            parts.append(input.narrow(axis, 0, after))
        input = torch.cat(parts, axis)
    return input


def _clamp(func: Callable[..., Any], input: Tensor, min: Any = None, max: Any = None) -> Any:
    # Case 3.
    if isinstance(min, Tensor) != isinstance(max, Tensor) and None not in (min, max):
        min, max = _as_tensor(min, input), _as_tensor(max, input)
    elif {type(min), type(max)} == {int, float}:
        min, max = float(min), float(max)
    return func(input, min, max)


def _one_hot(func: Callable[..., Any], tensor: Tensor, num_classes: Any = -1) -> Any:
    if isinstance(num_classes, int):
        return func(tensor, num_classes)
    # Case 8.
    classes = torch.arange(num_classes, device=tensor.device)
    # Looked up, so that a class that is not among them is refused.
    return (F.embedding(tensor, classes.unsqueeze(-1)) == classes).long()


_torchs_max_or_min: Callable[..., Any] = non_strict_utils._tensor_min_max


def _max_or_min(*args: Any, tensor_callable: Callable[..., Any], **kwargs: Any) -> Any:
    """What torch.export calls in place of `max` and `min`; `tensor_callable` is torch's function of two tensors."""
    is_one_tensor = len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() == 1
    if is_one_tensor and kwargs.keys() <= {"real_callable"}:
        reduction = torch.amax if tensor_callable is torch.maximum else torch.amin
        return reduction(args[0], 0)
    return _torchs_max_or_min(*args, tensor_callable=tensor_callable, **kwargs)


def _as_tensor(bound: Any, like: Tensor) -> Tensor:
    if isinstance(bound, Tensor):
        return bound
    return torch.full((), bound, dtype=torch.result_type(like, bound), device=like.device)


def _are_whole(numbers: Sequence[Any]) -> bool:
    return all(isinstance(number, int) for number in numbers)


def _same(number: Any) -> Any:
    return number


_PAD_LIST = torch._C._nn.pad_sequence

_UNBINDING = (torch.unbind, Tensor.unbind)
"""Also what a loop over a tensor calls, and `tolist`."""

_TAKING: dict[Any, Callable[[Any], Any]] = {
    Tensor.item: _same,
    Tensor.__bool__: bool,
    Tensor.__int__: int,
    Tensor.__float__: float,
    Tensor.__index__: int,
}

_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.max_pool1d: _pool(1, torch.amax, _max_pool),
    F.max_pool1d: _pool(1, torch.amax, _max_pool),
    torch.max_pool2d: _pool(2, torch.amax),
    F.max_pool2d: _pool(2, torch.amax),
    F.avg_pool1d: _pool(1, torch.mean),
    F.avg_pool2d: _pool(2, torch.mean),
    F.pad: _pad,
    F.one_hot: _one_hot,
    F.adaptive_avg_pool1d: _adaptive_pool(1, adaptive_average),
    F.adaptive_avg_pool2d: _adaptive_pool(2, adaptive_average),
    F.adaptive_avg_pool3d: _adaptive_pool(3, adaptive_average),
    F.adaptive_max_pool1d: _adaptive_pool(1, adaptive_maximum),
    F.adaptive_max_pool2d: _adaptive_pool(2, adaptive_maximum),
    F.adaptive_max_pool3d: _adaptive_pool(3, adaptive_maximum),
    torch.clamp: _clamp,
    torch.clip: _clamp,
    torch.clamp_: _clamp,
    torch.clip_: _clamp,
    Tensor.clamp: _clamp,
    Tensor.clip: _clamp,
    Tensor.clamp_: _clamp,
    Tensor.clip_: _clamp,
}
