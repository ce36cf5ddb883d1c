"""`convert`: any model, with its `torch.nn` recurrent layers replaced by ours."""

import itertools
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from deploy_rnn.checking.module import SCRIPTED, check_is_module
from deploy_rnn.copying import copy_model, fold_computed_weights, unwrapped
from deploy_rnn.errors import ConversionError
from deploy_rnn.held_layers import replace_held_layers, unregistered_layers
from deploy_rnn.nn.gru import GRU
from deploy_rnn.nn.lstm import LSTM
from deploy_rnn.nn.recurrent import Recurrent
from deploy_rnn.nn.rnn import RNN
from deploy_rnn.nn.single_step import CELL_MODULES
from deploy_rnn.renewed_modules import Recipes, renew_modules
from deploy_rnn.subclasses import classes_above, rebuilt
from deploy_rnn.type_tests import Layer, described, qualified_name, type_tests

LAYERS: Mapping[type[nn.RNNBase], type[Recurrent]] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
"""What each layer of `torch.nn` becomes."""

CALLED_BY_TORCH = {
    "check_forward_args", "check_hidden_size", "check_input", "get_expected_cell_size", "get_expected_hidden_size",
    "permute_hidden",
}  # fmt: skip
"""Methods that the `forward` of a layer of torch.nn calls, and that of ours does not."""

UNUSED_NAMES = {"mode", "num_directions", "_flat_weights", "_flat_weights_names"}
"""Names of our layers that their own code does not read."""

SET_ON_LAYERS = {
    "cell",
    "_name",
    "_step",
    "_gates",
    "_states",
    "_bias_in_step",
    "_own_parameters",
    "_scripted_weights",
    "_made_of",
}
"""What an object of our layers has, besides what `dir` of its class says."""

SCRIPTED_LAYER = re.compile(r"\baten::(lstm|gru|rnn_tanh|rnn_relu)\(")
"""A recurrent layer of torch.nn in the text of a TorchScript graph."""


def convert(model: nn.Module) -> nn.Module:
    """Copy `model`, with every `torch.nn.RNN`, `GRU` and `LSTM`, and their cells, replaced by ours.

    Weights, their names and `requires_grad`, train/eval mode, hooks and parametrisations stay as they are. A subclass
    keeps its methods, also a `forward` of its own, in which `super()` then means our layer. A layer that occurs twice
    stays one layer, also in a list, a dict or another object that a module holds. `model` itself is not changed.

    A replaced layer is no `torch.nn.LSTM`. Code of the model that asks `isinstance(layer, nn.LSTM)`, looks up
    `type(layer)` or calls `nn.LSTM.forward(layer, x)` is therefore made again, and means our layers there; so are the
    functions of other packages that it calls. Such a module becomes an object of a subclass of its own class. Where
    that is not enough, the question is refused; `layer.mode`, here "LSTM", stays as it is. So is code that takes
    `_flat_weights` for torch's kernels. A replaced cell does inherit from that of `torch.nn`. A subclass of a cell,
    and one with parametrised weights, stays as it is: every way out of PyTorch takes it. So does a layer that inherits
    from `nn.RNNBase` alone, and has a loop of its own.

    A tensor that was computed from parameters and kept, such as a weight that `forward` sets, is copied without its
    history. What Python cannot copy, such as a lock or an open file, is shared. `nn.DataParallel`,
    `DistributedDataParallel` and the wrapper of `torch.compile` are left out, and with them `module.` or `_orig_mod.`
    in the names of parameters.

    A model that packs its rows stays as it is, also in TorchScript: a layer takes a `PackedSequence` and returns one.

    What is gained is what `torch.nn`'s layers refuse, such as `torch.compile(fullgraph=True)` and `torch.func.vmap`.
    Speed is not: an LSTM on a CPU is slower than `nn.LSTM`, which has a fused kernel there.

    Args:
        model: any module; a bare layer too. Our own layers, and every other `Recurrent`, are kept.

    Raises:
        ConversionError: a recurrent layer is scripted, or its class overrides what only torch.nn's `forward` calls; the
            model asks for the class of a layer in code that cannot be made again; or it cannot be copied.
        TypeError: `model` is not a module.
    """
    check_is_module(model)
    _refuse_scripted_layers(model)
    # A shared layer has several paths; the first names it.
    layers = {}
    for path, module in model.named_modules():
        torch_class = _torch_class(module)
        if torch_class is not None:
            layers[id(module)] = Layer(path, module, _next_class(path, module, torch_class))
    cells = {
        id(module): Layer(path, module, CELL_MODULES[type(module)])
        for path, module in model.named_modules()
        if _is_plain_cell(module)
    }
    replaced = layers | cells
    converted = _replace_layers(copy_model(model))
    for module in converted.modules():
        if _is_plain_cell(module):
            # It has all that ours has.
            module.__class__ = CELL_MODULES[type(module)]
    if any(True for _ in type_tests(model, replaced)):
        _renew_code(converted, model, replaced)
    return converted


def _renew_code(converted: nn.Module, model: nn.Module, replaced: Mapping[int, Layer]) -> None:
    """Let the code of a converted model mean our layers where it names those of torch.nn.

    Raises:
        ConversionError: it would still do something else than that of `model`.
    """
    copies = dict(converted.named_modules(remove_duplicate=False))
    originals = {
        id(copies[path]): module
        for path, module in unwrapped(model).named_modules(remove_duplicate=False)
        if path in copies
    }
    renew_modules(converted, originals, _recipes(replaced))
    layers = {}
    for path, module in copies.items():
        layer = replaced.get(id(originals.get(id(module))))
        if layer is None and isinstance(module, (nn.RNNBase, nn.RNNCellBase, Recurrent)):
            layer = Layer(path, module, type(module))
        if layer is not None:
            layers[id(module)] = layer
    for path, module in unregistered_layers(converted).items():
        layers[id(module)] = Layer(path, module, type(module))
    for found in type_tests(converted, layers, originals):
        raise ConversionError(str(found))


def _recipes(replaced: Mapping[int, Layer]) -> Recipes:
    """What becomes of each class: those of torch.nn, and the subclasses that the model has."""
    recipes: dict[type, tuple[type[Any], type, type[Any]]] = {
        nn.RNNBase: (Recurrent, nn.RNNBase, nn.RNNBase)
    }
    for cls, ours in itertools.chain[Any](LAYERS.items(), CELL_MODULES.items()):
        recipes[cls] = (ours, cls, cls)
    for layer in replaced.values():
        torch_class = _torch_class(layer.module)
        if torch_class is not None:
            cls = _own_class(layer.module)
            recipes[cls] = (LAYERS[torch_class], cls, torch_class)
    return tuple(recipes.values())


def convert_for_inference(model: nn.Module) -> nn.Module:
    """Convert `model` in evaluation mode; each weight that a hook or a parametrisation computes becomes a plain one."""
    converted = convert(model)
    converted.eval()
    fold_computed_weights(converted)
    return converted


def _is_plain_cell(module: nn.Module) -> bool:
    """Whether this is a cell of torch.nn itself, with its forward."""
    return type(module) in CELL_MODULES and "forward" not in vars(module)


def _refuse_scripted_layers(model: nn.Module) -> None:
    scripted_layers = {cls.__name__ for cls in LAYERS}
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            continue
        name = getattr(module, "original_name", "")
        if name in scripted_layers or SCRIPTED_LAYER.search(_graph_text(module)):
            if not path:
                raise ConversionError(SCRIPTED)
            raise ConversionError(
                f"{described(path)} is scripted, with a recurrent layer in it; convert it first, and script the result."
            )


def _graph_text(module: torch.jit.ScriptModule) -> str:
    try:
        return str(module.inlined_graph)
    except (AttributeError, RuntimeError):  # it has no forward
        return ""


def _replace_layers(model: nn.Module) -> nn.Module:
    """Replace every recurrent layer of torch.nn in `model`, in place; return it, or its replacement."""
    replacements: dict[int, Recurrent] = {}
    layers = []
    # A shared layer has several paths, and is replaced at each of them by the same layer.
    for path, module in list(model.named_modules(remove_duplicate=False)):
        torch_class = _torch_class(module)
        if torch_class is None:
            continue
        if id(module) not in replacements:
            replacements[id(module)] = _replacement(path, module, torch_class)
            layers.append(module)  # an id is one object's for as long as that lives
        if path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replacements[id(module)])
    converted = replacements.get(id(model), model)
    replace_held_layers(converted, replacements)
    return converted


def _replacement(path: str, module: nn.Module, torch_class: type[nn.RNNBase]) -> Recurrent:
    """Our layer in the place of `module`, an object of `torch_class`."""
    layer = _next_class(path, module, torch_class).from_torch(cast(nn.RNNBase, module))
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(layer)
        for weight in layer.parametrizations:  # type: ignore[union-attr]
            parametrize._inject_property(layer, weight)
    return layer


def _next_class(path: str, module: nn.Module, torch_class: type[nn.RNNBase]) -> type[Recurrent]:
    """The class of our layer in the place of `module`, an object of `torch_class`.

    Raises:
        ConversionError: our layer would not do all that `module` does.
    """
    cls = _own_class(module)
    subclasses = [*itertools.chain(*classes_above(cls, torch_class))]
    names = {name for subclass in subclasses for name in vars(subclass)}
    lost = names & CALLED_BY_TORCH
    if lost:
        raise ConversionError(
            f"{described(path)} is a {qualified_name(cls)}, which defines `{min(lost)}`, and that would be lost: "
            f"only the `forward` of {qualified_name(torch_class)} calls it. Do the same in a `forward` of the class."
        )
    ours = LAYERS[torch_class]
    reserved = (set(dir(ours)) | SET_ON_LAYERS) - set(dir(torch_class)) - UNUSED_NAMES
    taken = (names | set(vars(module))) & reserved
    if taken:
        raise ConversionError(
            f"{described(path)} has its own `{min(taken)}`, a name that {ours.__module__.partition('.')[0]}."
            f"{ours.__name__} needs for itself; rename it."
        )
    return rebuilt(ours, cls, torch_class)


def _torch_class(module: nn.Module) -> type[nn.RNNBase] | None:
    """The layer of torch.nn that this is, or inherits from; None for another subclass of `nn.RNNBase`, too.

    Such a layer has a loop of its own.
    """
    return next((cls for cls in LAYERS if isinstance(module, cls)), None)


def _own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a layer, without the one that torch.nn.utils.parametrize puts before it."""
    cls = type(module)
    return cls.__mro__[1] if parametrize.is_parametrized(module) else cls
