"""`convert`: any model, with its `torch.nn.RNN` layers replaced by ours."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from deploy_rnn.errors import ConversionError
from deploy_rnn.rnn import RNN


def convert(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every `torch.nn.RNN` is a `deploy_rnn.RNN` with the same weights.

    Parameter names, values and `requires_grad`, train/eval mode and hooks stay as they are; a layer that occurs twice
    stays one layer. `model` itself is not touched.

    Args:
        model: any module; a bare `torch.nn.RNN` too. Our own layers are kept.

    Raises:
        ConversionError: the model holds a `torch.nn.GRU` or `torch.nn.LSTM`, a parametrised RNN, or a subclass of
            `torch.nn.RNN` with methods of its own; it is scripted, or cannot be copied.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(f"{_where(name)} is scripted; convert it first, and script the result.")
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:
        raise ConversionError(f"the model cannot be copied: {error}") from error
    return replace_layers(copied, RNN)


def replace_layers(model: nn.Module, layer: type[RNN]) -> nn.Module:
    """Put a `layer` in the place of every recurrent layer of `model`, in place; returns it, or its replacement.

    What is a `layer` already, or a subclass of it, stays.
    """
    paths = list(model.named_modules(remove_duplicate=False))  # a shared layer has several
    recurrent = {id(module): (path, module) for path, module in reversed(paths) if _is_recurrent(module)}
    replacements = {
        key: _replacement(path, module, layer)
        for key, (path, module) in recurrent.items()
        if not isinstance(module, layer)
    }
    for path, module in paths:
        if path and id(module) in replacements:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replacements[id(module)])
    return replacements.get(id(model), model)


def _is_recurrent(module: nn.Module) -> bool:
    return isinstance(module, (nn.RNNBase, RNN))


def _replacement(name: str, module: nn.Module, layer: type[RNN]) -> RNN:
    where = _where(name)
    if parametrize.is_parametrized(module):
        raise ConversionError(
            f"{where} (={type(module).__name__}) has parametrised weights; make them plain first, with "
            "torch.nn.utils.parametrize.remove_parametrizations(module, name)."
        )
    if not isinstance(module, (nn.RNN, RNN)):
        raise ConversionError(f"{where} is a {_qualified(type(module))}; only torch.nn.RNN can be converted.")
    known = nn.RNN if isinstance(module, nn.RNN) else RNN
    own = {name for cls in type(module).__mro__[: type(module).__mro__.index(known)] for name in vars(cls)}
    if lost := sorted(each for each in own if not each.startswith("__")):
        raise ConversionError(
            f"{where} is a {_qualified(type(module))} with `{lost[0]}` of its own, which would be lost; "
            "let it hold a torch.nn.RNN instead of inheriting from it."
        )
    return layer.like(module)


def _where(name: str) -> str:
    return f"`{name}`" if name else "the model"


def _qualified(cls: type) -> str:
    return f"{cls.__module__.removesuffix('.modules.rnn')}.{cls.__name__}"
