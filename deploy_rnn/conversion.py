"""`convert`: any model, with its `torch.nn` recurrent layers replaced by ours."""

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from deploy_rnn.errors import ConversionError
from deploy_rnn.nn.gru import GRU
from deploy_rnn.nn.lstm import LSTM
from deploy_rnn.nn.recurrent import Recurrent
from deploy_rnn.nn.rnn import RNN

LAYERS: Mapping[type[nn.RNNBase], type[Recurrent]] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
"""What each layer becomes."""


def convert(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every `torch.nn.RNN`, `GRU` and `LSTM` is ours, with the same weights.

    Parameter names, values and `requires_grad`, train/eval mode, hooks and parametrisations stay as they are; a layer
    that occurs twice stays one layer. `model` itself is not touched.

    Args:
        model: any module; a bare layer too. Our own layers, and every other `Recurrent`, are kept.

    Raises:
        ConversionError: a layer is a subclass with methods of its own, or scripted; or the model cannot be copied.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(f"{_where(name)} is scripted; convert it first, and script the result.")
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:
        raise ConversionError(f"the model cannot be copied: {error}") from error
    return _replace_layers(copied)


def _replace_layers(model: nn.Module) -> nn.Module:
    """Replace every recurrent layer of torch.nn in `model`, in place; returns it, or its replacement."""
    paths = list(model.named_modules(remove_duplicate=False))  # a shared layer has several
    theirs = {id(module): (path, module) for path, module in reversed(paths) if isinstance(module, nn.RNNBase)}
    replacements = {key: _replacement(path, module) for key, (path, module) in theirs.items()}
    for path, module in paths:
        if path and id(module) in replacements:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replacements[id(module)])
    return replacements.get(id(model), model)


def _replacement(name: str, module: nn.RNNBase) -> Recurrent:
    known = next((cls for cls in LAYERS if isinstance(module, cls)), None)
    if known is None:
        can = ", ".join(map(_qualified, LAYERS))
        raise ConversionError(f"{_where(name)} is a {_qualified(type(module))}; only {can} can be converted.")
    mro = type(module).__mro__
    derived = [cls for cls in mro[: mro.index(known)] if not _only_parametrized(cls, module)]
    own = {each for cls in derived for each in vars(cls) if not each.startswith("__")}
    if own:
        raise ConversionError(
            f"{_where(name)} is a {_qualified(type(module))} with `{min(own)}` of its own, which would be lost; "
            f"let it hold a {_qualified(known)} instead of inheriting from it."
        )
    layer = LAYERS[known].from_torch(module)
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(layer)
        for weight in layer.parametrizations:  # type: ignore[union-attr]
            parametrize._inject_property(layer, weight)
    return layer


def _only_parametrized(cls: type, module: nn.Module) -> bool:
    """The class that torch.nn.utils.parametrize puts before the module's own."""
    return parametrize.is_parametrized(module) and cls is type(module)


def _where(name: str) -> str:
    return f"`{name}`" if name else "the model"


def _qualified(cls: type) -> str:
    return f"{cls.__module__.removesuffix('.modules.rnn')}.{cls.__name__}"
