"""`copy_model`: a deep copy of any model, also of one that `copy.deepcopy` refuses."""

import copy
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from deploy_rnn.errors import ConversionError
from deploy_rnn.held_layers import replace_held_layers


def copy_model(model: nn.Module, replaced: Mapping[int, Any] | None = None) -> nn.Module:
    """Copy `model` with everything in it.

    1. A tensor with a history, such as a weight that a hook or a `forward` computes and keeps, is copied without it.
    2. What Python cannot copy, such as a lock, a generator or an open file, is shared with the copy.
    3. A function with a module of `model` in its closure, such as a hook, gets the copied module.
    4. `nn.DataParallel`, `DistributedDataParallel` and the wrapper of `torch.compile` are left out: the module within
       them takes their place.

    Args:
        model: any module.
        replaced: id of an object of `model` -> what takes its place in the copy.

    Raises:
        ConversionError: a module in `model`, or a tensor, refuses to be copied.
    """
    shared: dict[int, Any] = {}
    while True:
        try:
            with _CopiesWithoutHistory():
                memo = dict(replaced or {}) | shared
                copied = _copied(model, memo)
        except Exception as error:  # the model's own code can raise anything
            refused = _refused(error.__traceback__)
            if isinstance(refused, (nn.Module, Tensor)) or id(refused) in shared:
                raise ConversionError(
                    f"the model cannot be copied: {type(error).__name__}: {error}"
                ) from error
            shared[id(refused)] = refused
        else:
            # A function is not copied: the modules in its closure are still those of the model.
            copies = {id(part): memo[id(part)] for part in model.modules() if id(part) in memo}
            new_ids = {id(new) for old_id, new in memo.items() if id(new) != old_id}
            replace_held_layers(copied, copies, within=new_ids)
            _register_scripted_weights(copied)
            return copied


def evaluation_copy(model: nn.Module, replaced: Mapping[int, Any] | None = None) -> nn.Module:
    """`copy_model`, in evaluation mode: the `train` of some models, which `eval` calls, returns nothing."""
    copied = copy_model(model, replaced)
    copied.eval()
    return copied


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    # A wrapper may be within another: the inner one first.
    for module in reversed([*model.modules()]):
        inner = _wrapped(module)
        if inner is not None:
            memo[id(module)] = copy.deepcopy(inner, memo)
    return copy.deepcopy(model, memo)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module within `nn.DataParallel`, `DistributedDataParallel` or `torch.compile`, or within several of them.

    Their own `forward` hides the names of its arguments.
    """
    inner = _wrapped(model)
    return model if inner is None else unwrapped(inner)


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module that this is a wrapper of; None if it is none."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return cast(nn.Module, module.module)
    dynamo = sys.modules.get("torch._dynamo")  # where nothing was compiled, it need not be loaded
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        return cast(nn.Module, module._orig_mod)
    return None


class _CopiesWithoutHistory(TorchFunctionMode):
    """While it is entered, `copy.deepcopy` takes the value of a computed tensor, which it refuses otherwise."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        with DisableTorchFunction():
            return copy.deepcopy(tensor.detach(), memo)


def _refused(traceback: TracebackType | None) -> Any:
    """What `copy.deepcopy` was at when it failed."""
    refused = None
    while traceback is not None:
        if traceback.tb_frame.f_code is copy.deepcopy.__code__:
            refused = traceback.tb_frame.f_locals["x"]
        traceback = traceback.tb_next
    return refused


def computed_weights(module: nn.Module) -> dict[str, Any]:
    """The weights of `module` that a hook computes before each call -> the hook."""
    computed = {}
    for hook in module._forward_pre_hooks.values():
        # `name` is that of weight_norm and spectral_norm, `_tensor_name` that of prune.
        name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(name, str) and isinstance(vars(module).get(name), Tensor):
            computed[name] = hook
    return computed


def has_computed_weights(model: nn.Module) -> bool:
    """Whether a hook or a parametrisation computes a weight anywhere in `model`."""
    return any(
        computed_weights(module) or parametrize.is_parametrized(module)
        for module in model.modules()
    )


def fold_computed_weights(model: nn.Module) -> None:
    """Turn every weight that a hook or a parametrisation computes into an ordinary parameter, in place.

    For a model that is not trained any more: neither ONNX nor TorchScript has all that weights are computed with.
    """
    for module in model.modules():
        _fold_parametrizations(module)
        for name, hook in computed_weights(module).items():
            hook(module, ())
            weight = vars(module).pop(name).detach()
            for key, registered in list(module._forward_pre_hooks.items()):
                if registered is hook:
                    del module._forward_pre_hooks[key]
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def _fold_parametrizations(module: nn.Module) -> None:
    """`remove_parametrizations` would take the weights out of the class, which copies of the module share."""
    if not parametrize.is_parametrized(module):
        return
    values = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))


def _register_scripted_weights(model: nn.Module) -> None:
    """Make the weights of copied scripted parts parameters, in place: a copy of such a part has computed tensors.

    torch.export takes no such tensor for a weight, and nothing trains it.
    """
    for module in model.modules():
        # A scripted recurrent layer has its weights a second time, in a list: they stay the same tensors.
        if isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "_flat_weights"):
            for name, weight in [*module.named_parameters(recurse=False)]:
                if not isinstance(weight, nn.Parameter):
                    parameter = nn.Parameter(weight.detach(), weight.requires_grad)
                    module._c.setattr(name, parameter)
