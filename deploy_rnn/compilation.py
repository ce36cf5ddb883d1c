"""`compile`: a whole model, its recurrent layers included, through `torch.compile`."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import torch._dynamo
from torch import nn
from torch._dynamo import OptimizedModule
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional

from deploy_rnn.compiled_function import CompiledFunction
from deploy_rnn.conversion import convert
from deploy_rnn.copying import unwrapped
from deploy_rnn.errors import CompilationError, ConversionError
from deploy_rnn.first_call import FirstCall, refuse_failing
from deploy_rnn.held_layers import unregistered_layers
from deploy_rnn.inductor import compile_graph
from deploy_rnn.model_errors import BRANCH, first_paragraph, line_in_text
from deploy_rnn.nn.library import assign_kernels, check_recurrence
from deploy_rnn.nn.recurrence import without_wrappers
from deploy_rnn.nn.recurrent import Recurrent, is_plain_layer
from deploy_rnn.packing.tracing import packing_traced
from deploy_rnn.pooling import max_pool_of_image


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

    A wrong number is an error, not a result:

    1. The first call compares the converted model with `model`: both run once, uncompiled, on the inputs of the call,
       in evaluation mode and without gradients, with the parameters that the result then has. `model` is kept until
       then. A bare layer is left out: no code around it could depend on its class.
    2. The first call of each kind compares what is compiled with the converted model, which runs uncompiled, as a copy
       that shares its weights: what the call returns, what it overwrites, the state that it leaves the model in, and
       the gradients, if it has any. Other threads wait until then. If something differs by more than rounding may do,
       calls of that kind raise CompilationError from then on.

    That takes the memory of an uncompiled call (with gradients, of one there and back), and less time than compiling.
    Not compared are the numbers of a call that draws random ones, as dropout does in training mode, because compiled
    code draws others (shapes and dtypes are compared), and what changes outside of the model. Code and hooks of the
    model run more than once in a first call.

    A copy of the result, by `copy.deepcopy` or `pickle`, is compiled at its own first call, and compared there.

    Args:
        model: any module that `convert` takes; it is not changed, and shares no parameters with the result.
        check: whether first calls compare.
        recurrence: what computes the layers: "scan" for the loop; "library" for a library's kernel wherever there is
            one, which is cuDNN's on a GPU, for every layer, in float16, float32 and float64, without lengths; "auto"
            for what was measured to be faster (docs/speed.md): oneDNN's kernel, and else the loop.

    Raises:
        CompilationError: at a call, torch.compile cannot take the model, the model itself fails on its arguments,
            the compiled model gives something else than `model`, or the call is within a transform of torch.func; at
            the first call of a kind with gradients, it is within hooks on saved tensors, such as a checkpoint's.
        ConversionError: see `convert`; a list, a dict or another object holds a layer that no module registers; at the
            first call, the converted model gives something else than `model`.
        ValueError: another `recurrence`.

    Warns:
        UserWarning: at the first call, if a cell such as `torch.nn.LSTMCell` is called more than once: torch.compile
            unrolls the loop around it, so that every number of steps compiles again; at the first call beyond
            the limit; at a first call, if the C++ compiler does not take the fastest code.
    """
    check_recurrence(recurrence)
    converted = convert(model)
    model = unwrapped(model)
    for path, layer in unregistered_layers(converted).items():
        raise ConversionError(
            f"`{path}` holds a torch.nn.{type(layer).__name__} that is not registered, so that it cannot be compiled; "
            "use an nn.ModuleList or nn.ModuleDict, or assign the layer to an attribute."
        )
    original = model if check and _has_code_around_layers(model) else None
    return _compiled(converted, original, check, recurrence)


@dataclass(frozen=True)
class _Compilation:
    """How a model was compiled.

    Attributes:
        check: whether first calls compare.
        recurrence: as of `compile`.
        first_call: compares with the original; None if nothing does.
    """

    check: bool
    recurrence: str
    first_call: FirstCall | None


class CompiledModel(OptimizedModule):
    """What `compile` returns.

    A copy, by `copy.deepcopy` or `pickle`, has its own weights and hooks; it is compiled again, and compared as this.
    Its `state_dict` is that of the model that was compiled: either takes the other's. One with the names that
    torch.compile gives, `_orig_mod.weight_ih_l0`, is taken, too.
    """

    _compilation: _Compilation | None = None

    def state_dict(self, *args: Any, **options: Any) -> Any:
        # Not that of torch.compile's wrapper: nobody else has the names that it gives.
        return self._orig_mod.state_dict(*args, **options)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        """A part of `load_state_dict`; each key in `state_dict` that begins with `prefix` is one of this module."""
        inner = f"{prefix}_orig_mod."
        for name in [*state_dict]:
            if name.startswith(prefix) and not name.startswith(inner):
                state_dict[inner + name.removeprefix(prefix)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse torch.jit.script, which asks for this first."""
        raise CompilationError(
            "torch.jit.script takes no compiled model; deploy_rnn.package(model, args, 'model.pt') writes TorchScript."
        )

    def __copy__(self) -> "CompiledModel":
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))  # the compiled code, too, as the weights are the same
        return copied

    def __reduce__(self) -> Any:
        how = self._compilation
        assert how is not None  # assigned as soon as there is one
        original = None if how.first_call is None else how.first_call.model
        hooks = {name: value for name, value in vars(self).items() if "_hook" in name}
        return _copy, (self._orig_mod, original, how.check, how.recurrence, hooks)


def _copy(
    converted: nn.Module,
    original: nn.Module | None,
    check: bool,
    recurrence: str,
    hooks: dict[str, Any],
) -> nn.Module:
    """Compile the copy of a converted model; `hooks`: those of what was compiled before."""
    compiled = _compiled(converted, original, check, recurrence)
    for name, value in hooks.items():
        if isinstance(value, dict):
            vars(compiled)[name].update(value)
        elif value is not None:
            vars(compiled)[name] = value
    return compiled


def _compiled(
    converted: nn.Module, original: nn.Module | None, check: bool, recurrence: str
) -> nn.Module:
    """Compile a converted model.

    Args:
        converted: what is compiled.
        original: what its first call is compared with; None for no comparison.
        check: whether the first call of each kind is compared with `converted`.
        recurrence: as of `compile`.
    """
    compiled: Any = torch.compile(converted, fullgraph=True, dynamic=True, backend=compile_graph)
    if compiled is converted:
        # torch.compile is switched off, as by TORCHDYNAMO_DISABLE=1.
        return cast(nn.Module, converted)
    _substitute_max_pool()
    for part in converted.modules():
        if isinstance(part, Recurrent):
            # A copy of a compiled model has those of its layers still.
            part.recurrence = without_wrappers(part.recurrence)
    kernels = assign_kernels(converted, recurrence)
    first_call = None if original is None else FirstCall(original, converted)
    compiled_forward = CompiledFunction(
        packing_traced(converted), compile_graph, converted if check else None
    )

    def forward(*args: Any, **kwargs: Any) -> Any:
        _refuse_transforms()
        if first_call is not None:
            first_call.check(args, kwargs)
        if kernels and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for kernel in kernels:
                kernel.prepare()
        try:
            return compiled_forward(*args, **kwargs)
        except CompilationError:
            raise
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

    compiled.__class__ = CompiledModel
    compiled.forward = forward
    compiled._compilation = _Compilation(check, recurrence, first_call)
    return cast(nn.Module, compiled)


@cache
def _substitute_max_pool() -> None:
    """Tell torch.compile to read a pool that takes any number of steps."""
    rules = torch._dynamo.trace_rules.get_torch_obj_rule_map()
    for function in (torch.max_pool1d, functional.max_pool1d):
        rules.pop(function, None)  # the rule not to read it
        torch.compiler.substitute_in_graph(function, skip_signature_check=True)(max_pool_of_image)


def _refuse_transforms() -> None:
    """Refuse a call within `torch.func.vmap`, `jvp` and the like, unless torch.compile reads them, too.

    Raises:
        CompilationError: it is such a call.
    """
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack():
        raise CompilationError(
            "a transform of torch.func, such as vmap, jvp or jacrev, takes no compiled model; give it "
            "deploy_rnn.convert(model)."
        )


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
    # Of the step of a loop, the reason is another error's text within this one.
    reason = first_paragraph(error, preamble="Got graph break/error:").partition(" Hint: ")[0]
    reason = re.sub(r" Higher Order Operator: \S+", "", reason).replace(" Explanation:", ":")
    return CompilationError(
        f"{start}torch.compile cannot take this: {reason.rstrip(' :.')}. "
        "Write it in another way, or use the model uncompiled."
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
