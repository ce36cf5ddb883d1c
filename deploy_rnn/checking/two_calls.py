"""Call a model twice before anything is made of it: does it run, and does it give the same numbers again?

A file is a function of its inputs. A model that draws random numbers, or keeps a state between its calls, is not.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deploy_rnn.checking import example_call
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.model_state import Dependency, changed_names, fresh_copy, state_of
from deploy_rnn.checking.structure import check_known
from deploy_rnn.checking.tolerance import (
    PRECISIONS,
    ROUNDING_MARGIN,
    difference,
    magnitudes,
    model_precision,
)
from deploy_rnn.checking.trials import draw
from deploy_rnn.errors import ExportError
from deploy_rnn.model_errors import own_failure, running_line
from deploy_rnn.random_state import changed_generators, generator_states, random_state_kept

MORE_CALLS = 8
"""Further calls of a model that draws: by chance, a draw may leave the outputs of one call as they are."""

NAMED = 3
"""How many lines or attributes a message names."""


def check_two_calls(model: nn.Module, call: ExampleCall) -> Any:
    """Check that the model runs on its example, and gives the same numbers when it is called again.

    `model` stays as it is, and so do the random numbers of the process.

    Returns:
        What the model returned first; another call may have changed its values since.

    Raises:
        ExportError: the model fails; or it draws random numbers, or keeps a state between its calls, and its outputs
            depend on them.
        ConversionError: the model cannot be copied.
    """
    with random_state_kept():
        copied = fresh_copy(model)
        state = state_of(copied)
        generators = generator_states()
        result = _result(copied, call)
        check_known("the result of the model", result)
        outputs = _tensors(result)
        changed = changed_names(state, state_of(copied))
        calls = 1 + MORE_CALLS if changed_generators(generators) else 1
        for _ in range(calls):
            try:
                again = _run(copied, call)
            except ExportError as error:
                raise _state_error(changed, f"a second call fails: {error}") from error
            if _differ(outputs, again, model_precision(model)):
                raise _two_answers(model, call, outputs, changed, calls)
        if changed:
            read_names = _read_again(copied, call)
            if read_names:
                raise _state_error(read_names, "the outputs depend on it")
    return result


def _run(model: nn.Module, call: ExampleCall) -> list[Tensor]:
    """The outputs, which no later call changes."""
    return _tensors(_result(model, call))


def _result(model: nn.Module, call: ExampleCall) -> Any:
    try:
        with torch.no_grad():
            return call.result(model)
    except Exception as error:  # the model's own code may raise anything
        raise ExportError(own_failure(error)) from error


def _tensors(result: Any) -> list[Tensor]:
    return [
        leaf.detach().clone() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)
    ]


def _differ(first: Sequence[Tensor], second: Sequence[Tensor], precision: str) -> bool:
    """Whether two results differ by more than rounding may."""
    if [_dtype_and_shape(tensor) for tensor in first] != [
        _dtype_and_shape(tensor) for tensor in second
    ]:
        return True
    # Less could not widen the check of a file, which allows ROUNDING_MARGIN times the model's own rounding.
    limit = PRECISIONS[precision] / ROUNDING_MARGIN
    return any(
        _share(output, again) > (limit if output.is_floating_point() else 0)
        for output, again in zip(first, second, strict=True)
    )


def _dtype_and_shape(tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


def _share(expected: Tensor, actual: Tensor) -> float:
    """The largest difference, as a share of an element's magnitude where that is above 1."""
    if expected.layout is not torch.strided:
        expected, actual = expected.to_dense(), actual.to_dense()
    if expected.is_complex():
        expected, actual = torch.view_as_real(expected), torch.view_as_real(actual)
    values = expected.double().numpy()
    shares = difference(values, actual.double().numpy()) / np.maximum(1.0, magnitudes(values))
    return float(shares.max(initial=0))


def _two_answers(
    model: nn.Module,
    call: ExampleCall,
    outputs: Sequence[Tensor],
    changed: Sequence[str],
    calls: int,
) -> ExportError:
    """The error for a model whose next call gave other outputs. `calls`: how many show what is by chance."""
    generators = generator_states()
    first_outputs = (_run(fresh_copy(model), call) for _ in range(calls))
    if not any(_differ(outputs, again, model_precision(model)) for again in first_outputs):
        return _state_error(changed, "a second call with the same inputs gives other numbers")
    sources = changed_generators(generators)
    draws = _Draws(fresh_copy(model))
    with suppress(Exception), draws:
        call.run(draws.model)
    if draws.lines:
        start = f"{', '.join(list(draws.lines)[:NAMED])}: the model draws random numbers here"
    elif sources:
        start = f"the model draws random numbers from {' and '.join(sources)}"
    else:
        return ExportError(
            "the model gives other numbers at each call with the same inputs, and a file cannot; what changes is "
            "neither a buffer nor an attribute of it: look for a global variable, or random numbers."
        )
    training = [f"`{name}` is in training mode" for name in draws.training]
    if training:
        start = f"{start} ({', '.join(training[:NAMED])})"
    return ExportError(
        f"{start}, and so gives other numbers at each call with the same inputs; a file cannot. Switch that off in "
        "evaluation mode, or let `forward` take the random numbers as an argument."
    )


def _state_error(names: Sequence[str], consequence: str) -> ExportError:
    what = _quoted(names) if names else "something in it"
    return ExportError(
        f"the model keeps a state between its calls, and a file cannot: {what} changes from call to call, and "
        f"{consequence}. Let `forward` take the state as an argument and return its new value; or call the recurrent "
        "layers without states, and export with `streaming=True`."
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:NAMED])


def _read_again(model: nn.Module, call: ExampleCall) -> list[str]:
    """What other inputs change in the model, and its next outputs are computed from: in the example it may fade.

    A cache, such as of a mask, stays the same for inputs of the same size.
    """
    state = state_of(model)
    # The model need not take these values.
    with suppress(Exception):
        _with_other_values(call).run(model)
        followed = Dependency(model, changed_names(state, state_of(model)))
        with torch.enable_grad():
            return followed.names_behind(call.outputs(model))
    return []


def _with_other_values(call: ExampleCall) -> ExampleCall:
    """The call with floats drawn from twice the example's range; with other whole numbers if there are no floats."""
    generator = torch.Generator().manual_seed(0)
    has_floats = any(tensor.is_floating_point() for tensor in call.tensors)
    tensors = []
    for tensor in call.tensors:
        if tensor.is_floating_point():
            tensor = 2 * draw(tensor, tensor.shape, generator)
        elif not has_floats:
            tensor = draw(tensor, tensor.shape, generator)
        tensors.append(tensor)
    return call.with_tensors(tensors)


class _Draws(TorchDispatchMode):
    """Collects the lines of the user's code that draw random numbers.

    Attributes:
        model: that is run.
        lines: where numbers were drawn; the name of the operator where no code of the user called it.
        training: the modules that were in training mode then.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.lines: dict[str, None] = {}
        self.training: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        before = torch.get_rng_state()
        result = func(*args, **kwargs)
        drew = not torch.equal(before, torch.get_rng_state())
        # A layer with a dropout of 0 has the tag, too.
        if drew or kwargs.get("generator") is not None:
            line = running_line(example_call.__name__) or f"torch.{func.__name__.partition('.')[0]}"
            self.lines[line] = None
            for name, module in self.model.named_modules():
                if module.training and not list(module.children()):
                    self.training[name] = None
        return result
