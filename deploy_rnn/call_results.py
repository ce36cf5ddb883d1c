"""Results of a call: what a model returns and changes, in a list, and whether two runs come to the same."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.copying import copy_model
from deploy_rnn.half_precision import half_precision

# What rounding may do, as a share of an output's largest element. Another branch of a model does far more.
ROUNDING = {torch.float16: 2e-2, torch.bfloat16: 5e-2, torch.float32: 1e-4, torch.float64: 1e-7}

LARGEST_STATE = 2**20
"""Elements of a parameter that is not trained, up to which it is copied: a call may keep a state in it.

A larger one is a weight, and a copy of all frozen weights would take as much memory as the model.
"""

DISTURBANCE_MARGIN = 10
"""How many times what a rounding of all inputs and weights does to a result may be put down to rounding."""


@dataclass(frozen=True)
class Result:
    """One tensor, number or text that a call comes to, and its name in a message, such as "output 0"."""

    name: str
    value: Any


def copy_with_weights(
    model: nn.Module, weights: nn.Module, change: Callable[[Tensor], Tensor] | None = None
) -> nn.Module:
    """A copy of `model` that shares the parameters of `weights`, and has its buffers' values.

    Args:
        model: what is copied; each part of the copy is in its mode.
        weights: a model with the same names.
        change: what is made of the values of each parameter; the copy then shares none.
    """
    replaced: dict[int, Any] = {}
    parameters = dict(weights.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in parameters and id(parameter) not in replaced:
            replaced[id(parameter)] = _parameter(parameters[name], change)
    buffers = dict(weights.named_buffers(remove_duplicate=False))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in buffers:
            replaced.setdefault(id(buffer), buffers[name].detach().clone())
    return copy_model(model, replaced)


def _parameter(parameter: Any, change: Callable[[Tensor], Tensor] | None) -> Any:
    if isinstance(parameter, nn.UninitializedParameter):
        return copy.deepcopy(parameter)
    if change is None and (parameter.requires_grad or parameter.numel() > LARGEST_STATE):
        return parameter
    values = parameter.detach().clone()
    return nn.Parameter(values if change is None else change(values), parameter.requires_grad)


def copy_values(value: Any) -> Any:
    """Copy the tensors in arguments, also those in a PackedSequence or a dataclass; a copy has no history.

    What is one tensor in two places is one in the copy, too.
    """
    copies: dict[int, Tensor] = {}

    def copy_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            if id(leaf) not in copies:
                copies[id(leaf)] = _copy_tensor(leaf)
            return copies[id(leaf)]
        if isinstance(leaf, tuple) and hasattr(leaf, "_fields"):  # a PackedSequence
            return type(leaf)(*map(copy_leaf, leaf))
        if is_dataclass(leaf) and not isinstance(leaf, type):
            instance = copy.copy(leaf)
            for field in fields(leaf):
                copied = pytree.tree_map(copy_leaf, getattr(leaf, field.name))
                object.__setattr__(instance, field.name, copied)
            return instance
        return leaf

    return pytree.tree_map(copy_leaf, value)


def _copy_tensor(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    if tensor.requires_grad and torch.is_grad_enabled():
        # Not the leaf itself, which no model may overwrite.
        copied = copied.requires_grad_().clone()
    return copied


def run_quietly(model: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run a call without its warnings: the call itself warns of the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(*args, **kwargs)


def outputs(result: Any) -> list[Result]:
    """The tensors, numbers and texts that a call returns, flat; the tensors without their history."""
    return [
        Result(f"output {number}", leaf.detach() if isinstance(leaf, Tensor) else leaf)
        for number, leaf in enumerate(_leaves(result))
    ]


def values_after(args: Any, kwargs: Any) -> list[Result]:
    """The tensors in the arguments, which the call may have overwritten."""
    tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return [
        Result(f"tensor {number} of the arguments, after the call,", tensor.detach())
        for number, tensor in enumerate(tensors)
    ]


def state_after(model: nn.Module) -> list[Result]:
    """The tensors that a model holds: buffers, attributes, and parameters that are not trained."""
    results = []
    for path, module in model.named_modules():
        held = {**module._parameters, **module._buffers, **vars(module)}
        for name, value in held.items():
            if name in _OF_EVERY_MODULE:
                continue
            place = f"{path}.{name}" if path else name
            results += [
                Result(f"`{place}`, after the call,", leaf.detach())
                for leaf in pytree.tree_leaves(value)
                if _may_be_state(leaf)
            ]
    return results


def _may_be_state(value: Any) -> bool:
    if isinstance(value, nn.Parameter):
        return not value.requires_grad and not nn.parameter.is_lazy(value)
    return isinstance(value, Tensor)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _leaves(value: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, (Tensor, int, float, str)):
            yield leaf
        elif isinstance(leaf, tuple):  # a PackedSequence
            yield from _leaves(list(leaf))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _leaves([getattr(leaf, field.name) for field in fields(leaf)])


def rounding_with(half: str | None) -> Mapping[torch.dtype, float]:
    """What rounding may do in a model with parts in that half precision, if any."""
    if half is None:
        return ROUNDING
    coarse = ROUNDING[getattr(torch, half)]
    return {dtype: max(share, coarse) for dtype, share in ROUNDING.items()}


def difference(
    expected: Sequence[Result],
    actual: Sequence[Result],
    rounding: Mapping[torch.dtype, float] = ROUNDING,
    disturbed: Sequence[Result] | None = None,
    whole_numbers: float = 0.0,
) -> str:
    """The first result that differs, in words; empty if none does.

    Args:
        expected: of the model.
        actual: of what is to be the same.
        rounding: what rounding may do in each dtype, as a share of the largest element.
        disturbed: of the model with roundings in its inputs and weights: how far they move a result, this may, too.
        whole_numbers: the share of whole numbers and booleans that may be others, in a large tensor.
    """
    text = difference_in_kind(expected, actual)
    if text:
        return text
    if disturbed is None or difference_in_kind(expected, disturbed):
        disturbed = expected
    for theirs, ours, moved in zip(expected, actual, disturbed, strict=True):
        if not isinstance(theirs.value, Tensor):
            continue
        distance, allowed = _distance(theirs.value, ours.value, rounding)
        slack = DISTURBANCE_MARGIN * _distance(theirs.value, moved.value, rounding)[0]
        if theirs.value.is_floating_point() or theirs.value.is_complex():
            if not distance <= max(allowed, slack):
                return (
                    f"{theirs.name} differs by {distance:.1e}, allowed is {max(allowed, slack):.1e}"
                )
        elif distance > max(whole_numbers * theirs.value.numel(), slack):
            return f"{theirs.name} differs in {int(distance)} of {theirs.value.numel()} elements"
    return ""


def difference_in_kind(expected: Sequence[Result], actual: Sequence[Result]) -> str:
    """The first result of another dtype, shape or type, or another number or text; what is in tensors is not read."""
    if len(actual) != len(expected):
        return f"it returns {len(actual)} values, the model {len(expected)}"
    for theirs, ours in zip(expected, actual, strict=True):
        if not isinstance(theirs.value, Tensor) or not isinstance(ours.value, Tensor):
            is_exact = isinstance(theirs.value, int | str)
            if type(theirs.value) is not type(ours.value) or (
                is_exact and theirs.value != ours.value
            ):
                return f"{theirs.name} is {ours.value!r}, the model's is {theirs.value!r}"
        elif _dtype_and_shape(theirs.value) != _dtype_and_shape(ours.value):
            return (
                f"{theirs.name} is {_dtype_and_shape(ours.value)}, "
                f"the model's is {_dtype_and_shape(theirs.value)}"
            )
    return ""


def _dtype_and_shape(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"


@torch.no_grad()
def _distance(
    expected: Tensor, actual: Tensor, rounding: Mapping[torch.dtype, float]
) -> tuple[float, float]:
    """The largest difference of two tensors, and what rounding may do; of whole numbers, how many differ."""
    if expected.layout is not torch.strided:
        expected, actual = expected.to_dense(), actual.to_dense()
    if not expected.numel() or torch.equal(expected, actual):
        return 0.0, 0.0
    if not expected.is_floating_point() and not expected.is_complex():
        return float((expected != actual).sum()), 0.0
    wide_dtype = torch.complex128 if expected.is_complex() else torch.float64
    exact, approximate = expected.to(wide_dtype), actual.to(wide_dtype)
    distance = (exact - approximate).abs()
    # An infinity or NaN equals itself.
    same = (exact == approximate) | (exact.isnan() & approximate.isnan())
    distance = torch.where(same, 0.0, distance).nan_to_num(nan=torch.inf, posinf=torch.inf)
    size = exact.abs().nan_to_num(0.0, 0.0, 0.0).max()
    share = rounding.get(expected.real.dtype if expected.is_complex() else expected.dtype, 0.0)
    if torch.is_autocast_enabled(expected.device.type):
        share = max(share, rounding[torch.bfloat16])
    return float(distance.max()), share * float(size)


Change = Callable[[Tensor], Tensor]


def difference_beyond_rounding(
    expected: Sequence[Result],
    actual: Sequence[Result],
    model: nn.Module,
    run_again: Callable[[Change | None], Sequence[Result]],
) -> str:
    """The first result that differs by more than rounding may do, in words; empty if none does.

    1. A part in half precision rounds as that does, whatever the dtype of a result.
    2. A model may be such that a rounding moves its results far: a long loop that amplifies. So it is run with
       roundings in its inputs and weights. Large tensors of whole numbers may then differ in a few places, as after an
       `argmax` of nearly equal numbers.

    Args:
        expected: of the model.
        actual: of what is to be the same.
        model: that one.
        run_again: run it on the same call, from the state that it had; it is given what to make of each tensor of the
            call, and of each weight.
    """
    text = difference(expected, actual)
    if not text or difference_in_kind(expected, actual):
        return text
    # Case 1.
    half = half_precision(model, lambda: run_again(None))
    rounding = rounding_with(half)
    text = difference(expected, actual, rounding)
    if not text:
        return text
    # Case 2.
    disturb = _Disturb(torch.float32 if half is None else getattr(torch, half))
    whole_numbers = max(ROUNDING[torch.float32], ROUNDING[disturb.dtype])
    disturbed = run_again(disturb)
    return difference(expected, actual, rounding, disturbed, whole_numbers)


class _Disturb:
    """Rounds tensors up or down at random, as one of `dtype` is rounded, or as their own if that is coarser."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._random = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        step = torch.finfo(tensor.dtype).eps
        if tensor.dtype is torch.float32:
            step = max(step, torch.finfo(self.dtype).eps)
        noise = torch.rand(tensor.shape, generator=self._random, dtype=torch.float64) * 2 - 1
        return (tensor + tensor * (step * noise).to(tensor.device)).to(tensor.dtype)
