"""`compile`: a whole model, its recurrent layers included, through `torch.compile`."""

import copy
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch._inductor
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch.fx.experimental import _config as shape_config

from deploy_rnn.conversion import convert
from deploy_rnn.copying import unwrapped
from deploy_rnn.errors import CompilationError, ConversionError
from deploy_rnn.first_call import FirstCall, refuse_failing
from deploy_rnn.held_layers import unregistered_layers
from deploy_rnn.model_errors import BRANCH, first_paragraph, line_in_text
from deploy_rnn.nn.recurrent import is_plain_layer
from deploy_rnn.packing.tracing import packing_traced

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

# Inductor can write the driving code in C++ too, which makes a loop of small steps up to 1.7x faster
# at B=1. It miscompiles a loop's gradient at T=1 (torch 2.13), and any loop before torch 2.13.
CPP_WRAPPER = TORCH_VERSION >= (2, 13)


def compile(model: nn.Module, *, check: bool = True) -> nn.Module:
    """Compile a copy of `model`: `convert`, then `torch.compile(fullgraph=True, dynamic=True)`.

    The time loop stays a loop in the compiled code, so compiling takes as long for T=1000 as for T=10, and new lengths
    and batch sizes do not compile again, except T=1 and B=1, once each. Compilation happens at the first call; it
    needs a C++ compiler on the CPU. Gradients flow; calls under `torch.no_grad()` are compiled separately, and faster.
    With gradients, a convolution between two layers that changes the number of steps can end in inductor's `NameError`.

    A model may pack its rows (`pack_padded_sequence`, `pad_packed_sequence`) by lengths that are a tensor: there is one
    graph for all lengths, and lengths that PyTorch refuses are refused with its error.

    On a CPU, an RNN or a GRU becomes faster than that of `torch.nn`, and an LSTM slower: there `nn.LSTM` has a fused
    kernel, which `torch.compile` does not reach. Export an LSTM instead, or compile it for what surrounds it.

    The first call also compares the converted model with `model`: both run once, uncompiled, on the inputs of the call,
    in evaluation mode and without gradients, with the parameters that the result then has. Compiling takes longer
    than that. `model` is kept until then. A bare layer is not compared: no code around it could depend on its class.

    Args:
        model: any module that `convert` takes; it is not changed, and shares no parameters with the result.
        check: whether the first call compares.

    Raises:
        CompilationError: at a call, torch.compile cannot take the model, or the model itself fails on its arguments.
        ConversionError: see `convert`; a list, a dict or another object holds a layer that no module registers; at the
            first call, the converted model gives something else than `model`.

    Warns:
        UserWarning: at the first call, if a cell such as `torch.nn.LSTMCell` is called more than once: torch.compile
            unrolls the loop around it, so that every number of steps compiles again.
    """
    converted = convert(model)
    model = unwrapped(model)
    for path, layer in unregistered_layers(converted).items():
        raise ConversionError(
            f"`{path}` holds a torch.nn.{type(layer).__name__} that is not registered, so that it cannot be compiled; "
            "use an nn.ModuleList or nn.ModuleDict, or assign the layer to an attribute."
        )
    compiled: Any = torch.compile(converted, fullgraph=True, dynamic=True, backend=_backend)
    forward = torch.compile(
        packing_traced(converted), fullgraph=True, dynamic=True, backend=_backend
    )
    first_call = FirstCall(model, converted) if check and _has_code_around_layers(model) else None

    fixed_numbers = False

    def call(args: Any, kwargs: Any) -> Any:
        nonlocal fixed_numbers
        with _NO_DUCK_SHAPES:
            if not fixed_numbers:
                try:
                    return forward(*args, **kwargs)
                except Exception as error:
                    # A loop of `scan` takes no number that is to be any, as are those that a module within it has, such
                    # as the eps of a norm: the code is then for the numbers of the call.
                    if "torch.SymFloat" not in str(error):
                        raise
                    fixed_numbers = True
            with torch._dynamo.config.patch(specialize_float=True):
                return forward(*args, **kwargs)

    def forward_without_duck_shapes(*args: Any, **kwargs: Any) -> Any:
        if first_call is not None:
            first_call.check(args, kwargs)
        try:
            return call(args, kwargs)
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

    compiled.forward = forward_without_duck_shapes
    return cast(nn.Module, compiled)


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


def _backend(
    graph: torch.fx.GraphModule, example_inputs: Sequence[torch.Tensor]
) -> Callable[..., Any]:
    # tanh from one exponential, in one vectorised loop.
    options: dict[str, Any] = {"cpp.use_decompose_tanh": True}
    if CPP_WRAPPER and not torch.is_grad_enabled():
        try:
            return _compile(copy.deepcopy(graph), example_inputs, options | {"cpp_wrapper": True})
        except InductorError as error:
            # The C++ driver declares a name twice where the output of a loop is overwritten in place, as by
            # `2 * rnn(x)[0]` (torch 2.13). The Python driver has no such names.
            if "CppCompileError" not in str(error):
                raise
    return _compile(graph, example_inputs, options)


def _compile(
    graph: torch.fx.GraphModule, example_inputs: Sequence[torch.Tensor], options: dict[str, Any]
) -> Callable[..., Any]:
    return cast(
        Callable[..., Any], torch._inductor.compile(graph, list(example_inputs), options=options)
    )
