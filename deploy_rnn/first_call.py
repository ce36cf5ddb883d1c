"""`FirstCall`: a converted model is compared once with the model itself, on what it is first called with."""

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.checking.cell_calls import CellCalls, count_cell_calls
from deploy_rnn.copying import copy_model, evaluation_copy
from deploy_rnn.errors import CompilationError, ConversionError
from deploy_rnn.half_precision import half_precision
from deploy_rnn.model_errors import own_failure, warn_user
from deploy_rnn.random_state import random_state_kept

# What rounding may do, as a share of an output's largest element. Another branch of the model does far more; what
# differs more is judged in float64, where rounding is no excuse.
ROUNDING = {torch.float16: 2e-2, torch.bfloat16: 5e-2, torch.float32: 1e-4, torch.float64: 1e-7}


class FirstCall:
    """Compares two models at the first call that the original takes, and then lets go of it.

    Both run as copies, in evaluation mode, without gradients, from the same state of every random generator, and with
    the parameters and buffers that the converted model has at that time. So nothing changes for the call itself.

    Args:
        model: the original.
        converted: what `convert` made of it.
    """

    def __init__(self, model: nn.Module, converted: nn.Module) -> None:
        self._model: nn.Module | None = model
        self._converted = converted
        self._lock = threading.Lock()

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Compare, at the first call.

        Raises:
            CompilationError: the model itself fails.
            ConversionError: the converted model gives something else, or fails.
        """
        if self._model is None or torch.compiler.is_compiling():
            return
        with self._lock:
            if self._model is None:
                return
            original = _copy_with_weights(self._model, self._converted)
            try:
                with count_cell_calls(original, __name__) as cells:
                    expected = _outputs(original, args, kwargs)
            except Exception:  # the model's own code can raise anything
                # It may run in training mode all the same.
                refuse_failing(self._converted, args, kwargs)
                return
            self._compare(original, expected, args, kwargs)
            self._model = None
        _warn_about_loops(cells)

    def _compare(
        self,
        original: nn.Module,
        expected: list[Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        converted = _copy_with_weights(self._converted, self._converted)
        try:
            actual = _outputs(converted, args, kwargs)
        except Exception as error:
            raise ConversionError(
                f"the converted model fails where the model does not: {type(error).__name__}: {error}. "
                f"{_advice(original)}"
            ) from error
        difference = _difference(expected, actual, ROUNDING)
        if difference:
            # A part in half precision rounds as that does, whatever the dtype of the output.
            half = half_precision(original, lambda: _outputs(original, args, kwargs))
            difference = _difference(expected, actual, _rounding_with(half))
        if difference and not _same_in_float64(original, converted, args, kwargs):
            raise ConversionError(
                f"the converted model is not the model: {difference}. {_advice(original)}"
            )


def refuse_failing(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Run a call on a copy of the model, in its own mode and without torch.compile.

    Raises:
        CompilationError: the model fails.
    """
    copied = _copy_with_weights(model, model)
    copied.train(model.training)
    for module, copied_module in zip(model.modules(), copied.modules(), strict=True):
        copied_module.training = module.training
    try:
        _outputs(copied, args, kwargs)
    except Exception as error:  # the model's own code can raise anything
        raise CompilationError(own_failure(error)) from error


def _advice(original: nn.Module) -> str:
    layers = [path for path, module in original.named_modules() if isinstance(module, nn.RNNBase)]
    names = ", ".join(f"`{path}`" for path in layers[:3]) or "none"
    if len(layers) > 3:
        names += ", ..."
    return (
        f"Does its code depend on the class of a recurrent layer ({names})? `convert` replaces them; their `mode` "
        "stays. deploy_rnn.compile(model, check=False) leaves out the comparison."
    )


def _copy_with_weights(model: nn.Module, weights: nn.Module) -> nn.Module:
    """A copy of `model` that shares the parameters of `weights`, and has its buffers' values, in evaluation mode."""
    replaced: dict[int, Any] = {}
    parameters = dict(weights.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in parameters:
            replaced[id(parameter)] = parameters[name]
    buffers = dict(weights.named_buffers(remove_duplicate=False))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in buffers:
            replaced.setdefault(id(buffer), buffers[name].detach().clone())
    return evaluation_copy(model, replaced)


def _outputs(model: nn.Module, args: Any, kwargs: Any) -> list[Any]:
    """Run a call on copies of its tensors: -> the tensors and numbers that it returns, flat."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
    with torch.no_grad(), random_state_kept(), warnings.catch_warnings():
        # The call itself warns of the same.
        warnings.simplefilter("ignore")
        return list(_leaves(model(*args, **kwargs)))


def _leaves(value: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, (Tensor, int, float, str)):
            yield leaf
        elif isinstance(leaf, tuple):  # a PackedSequence
            yield from _leaves(list(leaf))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _leaves([getattr(leaf, field.name) for field in fields(leaf)])


def _rounding_with(half: str | None) -> Mapping[torch.dtype, float]:
    """What rounding may do in a model with parts in that half precision, if any."""
    if half is None:
        return ROUNDING
    coarse = ROUNDING[getattr(torch, half)]
    return {dtype: max(share, coarse) for dtype, share in ROUNDING.items()}


def _difference(
    expected: Sequence[Any], actual: Sequence[Any], rounding: Mapping[torch.dtype, float]
) -> str:
    """The first output that differs, in words; empty if none does."""
    if len(actual) != len(expected):
        return f"it returns {len(actual)} values, the model {len(expected)}"
    for number, (theirs, ours) in enumerate(zip(expected, actual, strict=True)):
        if not isinstance(theirs, Tensor) or not isinstance(ours, Tensor):
            if type(theirs) is not type(ours) or (isinstance(theirs, int | str) and theirs != ours):
                return f"output {number} is {ours!r}, the model's is {theirs!r}"
        elif theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            return (
                f"output {number} is {ours.dtype}{list(ours.shape)}, "
                f"the model's is {theirs.dtype}{list(theirs.shape)}"
            )
        else:
            largest, allowed = _largest_difference(theirs, ours, rounding)
            if not largest <= allowed:
                return f"output {number} differs by {largest:.1e}, allowed is {allowed:.1e}"
    return ""


def _largest_difference(
    expected: Tensor, actual: Tensor, rounding: Mapping[torch.dtype, float]
) -> tuple[float, float]:
    """The largest difference of two tensors, and what rounding may do."""
    if not expected.numel() or torch.equal(expected, actual):
        return 0.0, 0.0
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


def _same_in_float64(original: nn.Module, converted: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether two models agree where there is next to no rounding; False if they do not run there."""
    args, kwargs = pytree.tree_map_only(
        Tensor,
        lambda tensor: tensor.double() if tensor.is_floating_point() else tensor,
        (args, kwargs),
    )
    try:
        expected = _outputs(copy_model(original).double(), args, kwargs)
        actual = _outputs(copy_model(converted).double(), args, kwargs)
    except Exception:  # the model's own code can raise anything
        return False
    return not _difference(expected, actual, ROUNDING)


def _warn_about_loops(cells: Sequence[CellCalls]) -> None:
    for cell in cells:
        if cell.number > 1:
            warn_user(
                f"{cell}: torch.compile unrolls that, and compiles again for every other number of steps; after "
                f"{torch._dynamo.config.recompile_limit} of them, the others run uncompiled. {cell.advice}"
            )
