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
"""What each layer of `torch.nn` becomes."""


def convert(model: nn.Module) -> nn.Module:
    """Copy `model`, with every `torch.nn.RNN`, `GRU` and `LSTM` replaced by ours, with the same weights.

    Parameter names, values and `requires_grad`, train/eval mode, hooks and parametrisations stay as they are; a layer
    that occurs twice stays one layer. `model` itself is not changed.

    Args:
        model: any module; a bare layer too. Our own layers, and every other `Recurrent`, are kept.

    Raises:
        ConversionError: a layer is scripted, or its class adds methods; or the model cannot be copied.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(
                f"{_describe(path)} is scripted; convert it first, and script the result."
            )
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:
        raise ConversionError(f"the model cannot be copied: {error}") from error
    return _replace_layers(copied)


def _replace_layers(model: nn.Module) -> nn.Module:
    """Replace every recurrent layer of torch.nn in `model`, in place; return it, or its replacement."""
    replacements: dict[int, Recurrent] = {}
    # A shared layer has several paths, and is replaced at each of them by the same layer.
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, nn.RNNBase):
            continue
        if id(module) not in replacements:
            replacements[id(module)] = _replacement(path, module)
        if path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replacements[id(module)])
    return replacements.get(id(model), model)


def _replacement(path: str, module: nn.RNNBase) -> Recurrent:
    """Our layer in the place of `module`.

    Raises:
        ConversionError: our layer would not do all that `module` does.
    """
    torch_class = next((cls for cls in LAYERS if isinstance(module, cls)), None)
    if torch_class is None:
        convertible = ", ".join(_qualified_name(cls) for cls in LAYERS)
        raise ConversionError(
            f"{_describe(path)} is a {_qualified_name(type(module))}; only {convertible} can be converted."
        )
    added_names = _added_names(module, torch_class)
    if added_names:
        raise ConversionError(
            f"{_describe(path)} is a {_qualified_name(type(module))}, which defines `{min(added_names)}`, and that "
            f"would be lost; let it hold a {_qualified_name(torch_class)} instead of inheriting from it."
        )
    layer = LAYERS[torch_class].from_torch(module)
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(layer)
        for weight in layer.parametrizations:  # type: ignore[union-attr]
            parametrize._inject_property(layer, weight)
    return layer


def _added_names(module: nn.RNNBase, torch_class: type[nn.RNNBase]) -> set[str]:
    """What the classes between that of `module` and that of torch define."""
    mro = type(module).__mro__
    subclasses = mro[: mro.index(torch_class)]
    if parametrize.is_parametrized(module):
        subclasses = subclasses[
            1:
        ]  # the class that torch.nn.utils.parametrize puts before the module's own
    names = {name for cls in subclasses for name in vars(cls)}
    return {name for name in names if not name.startswith("__")}


def _describe(path: str) -> str:
    return f"`{path}`" if path else "the model"


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__.removesuffix('.modules.rnn')}.{cls.__name__}"
