"""`compile`: a whole model, its recurrent layers included, through `torch.compile`."""

import re
import threading
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, cast

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.fx.experimental import _config as shape_config
from torch.nn import functional

from deploy_rnn.any_size import max_pool_of_image
from deploy_rnn.conversion import convert
from deploy_rnn.copying import unwrapped
from deploy_rnn.errors import CompilationError, ConversionError
from deploy_rnn.first_call import FirstCall, refuse_failing
from deploy_rnn.held_layers import unregistered_layers
from deploy_rnn.inductor import compile_graph
from deploy_rnn.model_errors import BRANCH, first_paragraph, line_in_text, warn_user
from deploy_rnn.nn.library import assign_kernels, check_recurrence
from deploy_rnn.nn.recurrent import is_plain_layer
from deploy_rnn.packing.tracing import packing_traced


def compile(model: nn.Module, *, check: bool = True, recurrence: str = "auto") -> nn.Module:
    """Compile a copy of `model`: `convert`, then `torch.compile(fullgraph=True, dynamic=True)`.

    The time loop stays a loop in the compiled code, so compiling takes as long for T=1000 as for T=10, and new lengths
    and batch sizes do not compile again, except T=1 and B=1, once each. Compilation happens at the first call; it
    needs a C++ compiler on the CPU. Gradients flow; calls under `torch.no_grad()` are compiled separately, and faster.
    Each kind of call is compiled once: with states or lengths or without, another dtype. Beyond
    `torch._dynamo.config.recompile_limit` kinds (8), calls of other kinds run uncompiled.

    A model may pack its rows (`pack_padded_sequence`, `pad_packed_sequence`) by lengths that are a tensor: there is one
    graph for all lengths, and lengths that PyTorch refuses are refused with its error.

    A layer is a loop over its steps, or one call of a library's kernel, in the same graph. A library has one for an
    LSTM without `proj_size` on a CPU, in float32 and without gradients: oneDNN's, which `nn.LSTM` calls, too. It reads
    weights in an order of its own, in which a copy of them is kept. The copy is made again after any change that
    PyTorch counts, such as by `load_state_dict` or an optimizer. A change through `.data` or NumPy is not counted, and
    is seen if it is of more than a few elements.

    The first call also compares the converted model with `model`: both run once, uncompiled, on the inputs of the call,
    in evaluation mode and without gradients, with the parameters that the result then has. Compiling takes longer
    than that. `model` is kept until then. A bare layer is not compared: no code around it could depend on its class.

    Args:
        model: any module that `convert` takes; it is not changed, and shares no parameters with the result.
        check: whether the first call compares.
        recurrence: what computes the layers: "scan" for the loop; "library" for a library's kernel wherever there is
            one, which is cuDNN's on a GPU, for every layer, in float16, float32 and float64, without lengths; "auto"
            for what was measured to be faster (docs/speed.md): oneDNN's kernel, and else the loop.

    Raises:
        CompilationError: at a call, torch.compile cannot take the model, or the model itself fails on its arguments.
        ConversionError: see `convert`; a list, a dict or another object holds a layer that no module registers; at the
            first call, the converted model gives something else than `model`.
        ValueError: another `recurrence`.

    Warns:
        UserWarning: at the first call, if a cell such as `torch.nn.LSTMCell` is called more than once: torch.compile
            unrolls the loop around it, so that every number of steps compiles again; at the first call beyond
            the limit.
    """
    check_recurrence(recurrence)
    converted = convert(model)
    model = unwrapped(model)
    for path, layer in unregistered_layers(converted).items():
        raise ConversionError(
            f"`{path}` holds a torch.nn.{type(layer).__name__} that is not registered, so that it cannot be compiled; "
            "use an nn.ModuleList or nn.ModuleDict, or assign the layer to an attribute."
        )
    compiled: Any = torch.compile(converted, fullgraph=True, dynamic=True, backend=compile_graph)
    if compiled is converted:
        # torch.compile is switched off, as by TORCHDYNAMO_DISABLE=1.
        return cast(nn.Module, converted)
    _substitute_max_pool()
    kernels = assign_kernels(converted, recurrence)
    compiled_forward = _CompiledFunction(packing_traced(converted))
    first_call = FirstCall(model, converted) if check and _has_code_around_layers(model) else None

    def forward(*args: Any, **kwargs: Any) -> Any:
        if first_call is not None:
            first_call.check(args, kwargs)
        if kernels and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for kernel in kernels:
                kernel.prepare()
        try:
            return compiled_forward(*args, **kwargs)
        except Exception as error:
            # Some errors of its tracing keep the type that Python would raise.
            if not (
                isinstance(error, TorchDynamoException)
                or "\nfrom user code:" in str(error)
                or _is_broken_promise(error)
            ):
                raise
            refuse_failing(converted, args, kwargs)
            raise _format_error(error) from error

    compiled.forward = forward
    return cast(nn.Module, compiled)


class _CompiledFunction:
    """A function compiled in one graph for each kind of call, as far as torch's limit on compilations goes.

    A kind of call is, for example, one row without gradients and with states. Of kinds beyond the limit, calls run
    uncompiled.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._only_compiled = threading.local()
        function = _with_code_of_its_own(self._refusing(function))
        self._compiled = torch.compile(
            function, fullgraph=True, dynamic=True, backend=compile_graph
        )
        # The same, but what is not compiled yet runs uncompiled.
        self._compiled_so_far = torch._dynamo.run(function)
        self._limit_reached = 0
        self._has_fixed_numbers = False

    def _refusing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which torch.compile reads; it refuses to run uncompiled where that is not wanted."""
        only_compiled = self._only_compiled

        def refusing(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling() and getattr(only_compiled, "is_set", False):
                raise _NotCompiledYetError
            return function(*args, **kwargs)

        return refusing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Where it is compiled, this takes less time than to ask torch.compile, which prepares for compiling each time.
        self._only_compiled.is_set = True
        try:
            return self._compiled_so_far(*args, **kwargs)
        except _NotCompiledYetError:
            pass
        finally:
            self._only_compiled.is_set = False
        limit = torch._dynamo.config.recompile_limit
        if limit > self._limit_reached:
            try:
                return self._compile(args, kwargs)
            except FailOnRecompileLimitHit:
                self._limit_reached = limit
                warn_user(
                    f"torch.compile has compiled this model for {limit} kinds of calls, which is its limit. Calls of "
                    "other kinds run uncompiled: other dtypes, with or without gradients, states or lengths, one step "
                    "or one row; in some models, every other number of steps. For more kinds, set "
                    "torch._dynamo.config.recompile_limit."
                )
        return self._compiled_so_far(*args, **kwargs)

    def _compile(self, args: Any, kwargs: Any) -> Any:
        with _NO_DUCK_SHAPES:
            if not self._has_fixed_numbers:
                try:
                    return self._compiled(*args, **kwargs)
                except Exception as error:
                    # A loop of `scan` takes no number that is to be any, as are those that a module within it has, such
                    # as the eps of a norm: the code is then for the numbers of the call.
                    if "torch.SymFloat" not in str(error):
                        raise
                    self._has_fixed_numbers = True
            with torch._dynamo.config.patch(specialize_float=True):
                return self._compiled(*args, **kwargs)


class _NotCompiledYetError(Exception):
    """A call of a kind for which there is no graph yet."""


@cache
def _substitute_max_pool() -> None:
    """Tell torch.compile to read a pool that takes any number of steps."""
    rules = torch._dynamo.trace_rules.get_torch_obj_rule_map()
    for function in (torch.max_pool1d, functional.max_pool1d):
        rules.pop(function, None)  # the rule not to read it
        torch.compiler.substitute_in_graph(function, skip_signature_check=True)(max_pool_of_image)


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; torch.compile's limit on compilations is one for all functions that share their code."""
    code = function.__code__.replace()
    copied = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _format_error(error: Exception) -> CompilationError:
    """The line of the model's code, and torch.compile's reason without its hints about itself."""
    text = str(error)
    if "C++ compiler" in text:
        return CompilationError(
            "torch.compile needs a C++ compiler, such as g++, and none was found; install one."
        )
    line = line_in_text(text)
    start = f"{line}: " if line else ""
    if "Data-dependent branching" in text or "data-dependent expression" in text:
        return CompilationError(f"{start}{BRANCH}")
    reason = first_paragraph(error).partition(" Hint: ")[0].replace(" Explanation:", ":")
    return CompilationError(
        f"{start}torch.compile cannot take this: {reason} Write it in another way, or use the model uncompiled."
    )


def _is_broken_promise(error: Exception) -> bool:
    """Whether a compiled graph found a value that it was not made for, such as lengths out of order.

    It says so of a number that it has a name for, as in "u1 <= 0".
    """
    return isinstance(error, RuntimeError) and re.search(r"\bu\d+\b", str(error)) is not None


def _has_code_around_layers(model: nn.Module) -> bool:
    """Whether a layer or cell of torch.nn is a part of `model`, or the `forward` of a layer is its own."""
    layers = (nn.RNNBase, nn.RNNCellBase)
    if isinstance(model, nn.RNNCellBase) or is_plain_layer(model):
        return False
    return any(isinstance(part, layers) for part in model.modules())


class _NoDuckShapes:
    """While it is entered, torch.compile does not assume that sizes are one size because its first call has them equal.

    Otherwise T=5, B=5 compiles once, and T=5, B=7 again. It is a setting of the process, hence the count: several
    threads may be inside, and the last to leave restores the setting that was there before the first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads_inside = 0
        self._previous_setting = True

    def __enter__(self) -> None:
        with self._lock:
            if self._threads_inside == 0:
                self._previous_setting = shape_config.use_duck_shape
                shape_config.use_duck_shape = False
            self._threads_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads_inside -= 1
            if self._threads_inside == 0:
                shape_config.use_duck_shape = self._previous_setting


_NO_DUCK_SHAPES = _NoDuckShapes()
