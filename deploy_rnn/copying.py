"""`copy_model`: a deep copy, also of a model whose weights are computed by hooks."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from deploy_rnn.errors import ConversionError


def copy_model(model: nn.Module, replaced: Mapping[int, Any] | None = None) -> nn.Module:
    """Copy `model` with everything in it.

    `torch.nn.utils.weight_norm`, `spectral_norm` and `prune` keep a weight as a tensor with a history, which PyTorch
    does not copy. A hook computes it again before each call, so that the copy may begin with its values alone.

    Args:
        model: any module.
        replaced: id of an object of `model` -> what takes its place in the copy.

    Raises:
        ConversionError: the model cannot be copied.
    """
    memo = dict(replaced or {})
    for module in model.modules():
        for name in computed_weights(module):
            weight = vars(module)[name]
            memo.setdefault(id(weight), weight.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # the model's own code can raise anything
        raise ConversionError(_why_not(model, error)) from error


def computed_weights(module: nn.Module) -> dict[str, Any]:
    """The weights of `module` that a hook computes before each call -> the hook."""
    computed = {}
    for hook in module._forward_pre_hooks.values():
        # `name` is that of weight_norm and spectral_norm, `_tensor_name` that of prune.
        name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(name, str) and isinstance(vars(module).get(name), Tensor):
            computed[name] = hook
    return computed


def fold_computed_weights(model: nn.Module) -> None:
    """Turn every weight that a hook computes into an ordinary parameter, in place; for a model that stays as it is."""
    for module in model.modules():
        for name, hook in computed_weights(module).items():
            hook(module, ())
            weight = vars(module).pop(name).detach()
            for key, registered in list(module._forward_pre_hooks.items()):
                if registered is hook:
                    del module._forward_pre_hooks[key]
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def _why_not(model: nn.Module, error: Exception) -> str:
    path = next(_uncopyable_tensors(model), None)
    if path is None:
        return f"the model cannot be copied: {type(error).__name__}: {error}"
    return (
        f"the model cannot be copied: `{path}` is a tensor computed from parameters, with their gradients. Compute it "
        "in `forward`, or under torch.no_grad(); for a weight, use torch.nn.utils.parametrizations, or remove what "
        "computes it (torch.nn.utils.remove_weight_norm, prune.remove)."
    )


def _uncopyable_tensors(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        computed = computed_weights(module)
        for name, value in [*vars(module).items(), *module._buffers.items()]:
            if isinstance(value, Tensor) and not value.is_leaf and name not in computed:
                yield f"{path}.{name}".lstrip(".")
