"""`convert`: any model, with its `torch.nn` recurrent layers replaced by ours."""

import functools
import re
from collections.abc import Mapping
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from deploy_rnn.checking.module import check_is_module
from deploy_rnn.copying import copy_model, fold_computed_weights
from deploy_rnn.errors import ConversionError
from deploy_rnn.held_layers import replace_held_layers
from deploy_rnn.nn.gru import GRU
from deploy_rnn.nn.lstm import LSTM
from deploy_rnn.nn.recurrent import Recurrent
from deploy_rnn.nn.rnn import RNN
from deploy_rnn.nn.single_step import CELL_MODULES
from deploy_rnn.type_tests import Layer, type_tests

LAYERS: Mapping[type[nn.RNNBase], type[Recurrent]] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
"""What each layer of `torch.nn` becomes."""

HARMLESS = {
    "__init__", "__doc__", "__module__", "__annotations__", "__constants__", "__jit_unused_properties__", "__repr__",
    "__dict__", "__weakref__", "__slots__", "__init_subclass__", "__orig_bases__", "__parameters__", "__firstlineno__",
    "__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__", "_get_name", "extra_repr",
    "flatten_parameters", "reset_parameters",
}  # fmt: skip
"""What a subclass of a layer may override without changing its numbers."""

UNCOPIED = HARMLESS - {
    "__repr__",
    "_get_name",
    "extra_repr",
    "flatten_parameters",
    "reset_parameters",
}

SET_ON_LAYERS = {
    "cell",
    "_name",
    "_step",
    "_gates",
    "_states",
    "_bias_in_step",
    "_scripted_weights",
    "_made_of",
}
"""What an object of our layers has, besides what `dir` of its class says."""

SCRIPTED_LAYER = re.compile(r"\baten::(lstm|gru|rnn_tanh|rnn_relu)\(")
"""A recurrent layer of torch.nn in the text of a TorchScript graph."""


def convert(model: nn.Module) -> nn.Module:
    """Copy `model`, with every `torch.nn.RNN`, `GRU` and `LSTM`, and their cells, replaced by ours.

    Weights, their names and `requires_grad`, train/eval mode, hooks, parametrisations and the helpers of a subclass
    stay as they are; a layer that occurs twice stays one layer, also in a list, a dict or another object that a module
    holds. `model` itself is not changed.

    A replaced layer is no `torch.nn.LSTM`, so that a model which asks `isinstance(self.rnn, nn.LSTM)` while it runs
    would take another branch. Such a question is looked for in the code of the model, and refused; `self.rnn.mode`,
    here "LSTM", stays as it is. A replaced cell does inherit from that of `torch.nn`. A subclass of a cell, and one
    with parametrised weights, stays as it is: every way out of PyTorch takes it.

    What is gained is what `torch.nn`'s layers refuse, such as `torch.compile(fullgraph=True)` and `torch.func.vmap`.
    Speed is not: an LSTM on a CPU is slower than `nn.LSTM`, which has a fused kernel there.

    Args:
        model: any module; a bare layer too. Our own layers, and every other `Recurrent`, are kept.

    Raises:
        ConversionError: a recurrent layer is scripted, or its class computes something else than torch.nn's; the model
            asks for the class of a layer; or it cannot be copied.
        TypeError: `model` is not a module.
    """
    check_is_module(model)
    _refuse_scripted_layers(model)
    # A shared layer has several paths; the first names it.
    layers = {
        id(module): Layer(path, module, _next_class(path, module))
        for path, module in model.named_modules()
        if isinstance(module, nn.RNNBase)
    }
    cells = {
        id(module): Layer(path, module, CELL_MODULES[type(module)])
        for path, module in model.named_modules()
        if _is_plain_cell(module)
    }
    for test in type_tests(model, layers | cells):
        layer = test.layer
        if isinstance(layer.module, nn.RNNCellBase):
            advice = "Use `isinstance` there, which stays true."
        else:
            advice = f"Ask for the layer's `mode` there, which stays {layer.module.mode!r}."
        raise ConversionError(
            f"{_describe(layer.path)} would no longer be a {_qualified_name(type(layer.module))}, and the model asks "
            f"for that: `{test.question}` at {test.place}. {advice}"
        )
    converted = _replace_layers(copy_model(model))
    for module in converted.modules():
        if _is_plain_cell(module):
            # It has all that ours has.
            module.__class__ = CELL_MODULES[type(module)]
    return converted


def convert_for_inference(model: nn.Module) -> nn.Module:
    """Convert `model` in evaluation mode; every weight that a hook computes becomes a plain one."""
    converted = convert(model).eval()
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
            raise ConversionError(
                f"{_describe(path)} is scripted, with a recurrent layer in it; convert it first, and script the result."
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
        if not isinstance(module, nn.RNNBase):
            continue
        if id(module) not in replacements:
            replacements[id(module)] = _replacement(path, module)
            layers.append(module)  # an id is one object's for as long as that lives
        if path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replacements[id(module)])
    converted = replacements.get(id(model), model)
    replace_held_layers(converted, replacements)
    return converted


def _replacement(path: str, module: nn.RNNBase) -> Recurrent:
    """Our layer in the place of `module`."""
    layer = _next_class(path, module).from_torch(module)
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(layer)
        for weight in layer.parametrizations:  # type: ignore[union-attr]
            parametrize._inject_property(layer, weight)
    return layer


def _next_class(path: str, module: nn.RNNBase) -> type[Recurrent]:
    """The class of our layer in the place of `module`.

    Raises:
        ConversionError: our layer would not do all that `module` does.
    """
    torch_class = next((cls for cls in LAYERS if isinstance(module, cls)), None)
    if torch_class is None:
        convertible = ", ".join(_qualified_name(cls) for cls in LAYERS)
        raise ConversionError(
            f"{_describe(path)} is a {_qualified_name(type(module))}; only {convertible} can be converted."
        )
    if "forward" in vars(module):
        raise ConversionError(
            f"{_describe(path)} has a `forward` of its own, set on the object, and that would be lost; let a module "
            f"around the {_qualified_name(torch_class)} do it."
        )
    subclasses = _subclasses(module, torch_class)
    overridden = _names(subclasses) & set(dir(torch_class)) - HARMLESS
    if overridden:
        name = "forward" if "forward" in overridden else min(overridden)
        raise ConversionError(
            f"{_describe(path)} is a {_qualified_name(type(module))}, which defines `{name}`, and that "
            f"would be lost; let it hold a {_qualified_name(torch_class)} instead of inheriting from it."
        )
    ours = LAYERS[torch_class]
    reserved = (set(dir(ours)) | SET_ON_LAYERS) - set(dir(torch_class)) - {"mode"}
    taken = (_names(subclasses) | set(vars(module))) & reserved
    if taken:
        raise ConversionError(
            f"{_describe(path)} has its own `{min(taken)}`, a name that {ours.__module__.partition('.')[0]}."
            f"{ours.__name__} needs for itself; rename it."
        )
    return _with_helpers(ours, tuple(subclasses))


def _subclasses(module: nn.RNNBase, torch_class: type[nn.RNNBase]) -> list[type]:
    """The classes between that of `module` and that of torch, the most derived first."""
    mro = type(module).__mro__
    classes = mro[: mro.index(torch_class)]
    if parametrize.is_parametrized(module):
        # The class that torch.nn.utils.parametrize puts before the module's own.
        classes = classes[1:]
    return [cls for cls in classes if cls.__module__ not in ("abc", "typing")]


def _names(classes: list[type]) -> set[str]:
    return {name for cls in classes for name in vars(cls)}


def _with_helpers(ours: type[Recurrent], subclasses: tuple[type, ...]) -> type[Recurrent]:
    """Our layer with what the subclasses of torch's add to it, under the name of the most derived one."""
    if not subclasses:
        return ours
    made_of = (ours, subclasses)
    if made_of not in _HELPER_CLASSES:
        _HELPER_CLASSES[made_of] = _made_with_helpers(ours, subclasses)
    return _HELPER_CLASSES[made_of]


# One class for each, so that two layers of one class stay so.
_HELPER_CLASSES: dict[tuple[type[Recurrent], tuple[type, ...]], type[Recurrent]] = {}


def _made_with_helpers(ours: type[Recurrent], subclasses: tuple[type, ...]) -> type[Recurrent]:
    derived: type[Recurrent] = ours
    for subclass in reversed(subclasses):
        # What a class without a body has, and `abc` keeps, is not copied.
        members = {
            name: value
            for name, value in vars(subclass).items()
            if name not in UNCOPIED
            and not name.startswith("_abc_")
            and name != "__abstractmethods__"
        }
        members |= {"__module__": subclass.__module__, "__qualname__": subclass.__qualname__}
        derived = type(subclass.__name__, (derived,), members)
        for name, value in members.items():
            if isinstance(value, FunctionType):
                setattr(derived, name, _method_of(derived, value))
    derived.__reduce_ex__ = _reduce  # type: ignore[method-assign, assignment]
    derived._made_of = (ours, subclasses)  # type: ignore[attr-defined]
    return derived


def _method_of(cls: type, function: FunctionType) -> FunctionType:
    """The same function, whose `super()` begins at another class."""
    names = function.__code__.co_freevars
    if "__class__" not in names:
        return function
    cells = list(function.__closure__ or ())
    cells[names.index("__class__")] = CellType(cls)
    method = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells),
    )
    functools.update_wrapper(method, function)
    return method


def _reduce(layer: Recurrent, _: int) -> tuple[Any, ...]:
    """How copy and pickle make such a layer: its class is nowhere by name."""
    return _empty_layer, layer._made_of, vars(layer)


def _empty_layer(ours: type[Recurrent], subclasses: tuple[type, ...]) -> Recurrent:
    cls = _with_helpers(ours, subclasses)
    return cls.__new__(cls)


def _describe(path: str) -> str:
    return f"`{path}`" if path else "the model"


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__.removesuffix('.modules.rnn')}.{cls.__name__}"
