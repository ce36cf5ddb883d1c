"""`FirstCall`: a converted model is compared once with the model itself, on what it is first called with."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.call_results import (
    Result,
    copy_values,
    copy_with_weights,
    difference,
    outputs,
    rounding_with,
    run_quietly,
)
from deploy_rnn.checking.cell_calls import CellCalls, count_cell_calls
from deploy_rnn.copying import copy_model
from deploy_rnn.errors import CompilationError, ConversionError
from deploy_rnn.half_precision import half_precision
from deploy_rnn.model_errors import own_failure, warn_user
from deploy_rnn.random_state import random_state_kept


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

    @property
    def model(self) -> nn.Module | None:
        """The original; None once it was compared."""
        return self._model

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
            original = copy_with_weights(self._model, self._converted)
            original.eval()
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
        expected: list[Result],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        converted = copy_with_weights(self._converted, self._converted)
        converted.eval()
        try:
            actual = _outputs(converted, args, kwargs)
        except Exception as error:
            raise ConversionError(
                f"the converted model fails where the model does not: {type(error).__name__}: {error}. "
                f"{_advice(original)}"
            ) from error
        text = difference(expected, actual)
        if text:
            # A part in half precision rounds as that does, whatever the dtype of the output.
            half = half_precision(original, lambda: _outputs(original, args, kwargs))
            text = difference(expected, actual, rounding_with(half))
        # What differs more is judged in float64, where rounding is no excuse.
        if text and not _same_in_float64(original, converted, args, kwargs):
            raise ConversionError(
                f"the converted model is not the model: {text}. {_advice(original)}"
            )


def refuse_failing(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Run a call on a copy of the model, in its own mode and without torch.compile.

    Raises:
        CompilationError: the model fails.
    """
    try:
        _outputs(copy_with_weights(model, model), args, kwargs)
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


@torch.no_grad()
def _outputs(model: nn.Module, args: Any, kwargs: Any) -> list[Result]:
    """Run a call on copies of its tensors: -> the tensors and numbers that it returns, flat."""
    args, kwargs = copy_values((args, kwargs))
    with random_state_kept():
        return outputs(run_quietly(model, args, kwargs))


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
    return not difference(expected, actual)


def _warn_about_loops(cells: Sequence[CellCalls]) -> None:
    for cell in cells:
        if cell.number > 1:
            warn_user(
                f"{cell}: torch.compile unrolls that, and compiles again for every other number of steps; after "
                f"{torch._dynamo.config.recompile_limit} of them, the others run uncompiled. {cell.advice}"
            )
