"""Layers that a module holds outside its registered submodules: in a list, a dict, another object."""

from collections import deque
from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn


def replace_held_layers(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Put the replacement of each layer, by its id, wherever else the modules of `model` hold the layer itself.

    Lists, dicts and objects are changed in place; a tuple, a set, a `partial` and a bound method are made again.
    """
    holders = _Holders(replacements)
    for module in model.modules():
        # A scripted module has its values in C++.
        if not isinstance(module, torch.jit.ScriptModule):
            holders.enter(vars(module))


def unregistered_layers(model: nn.Module) -> dict[str, nn.RNNBase]:
    """Attribute of a module -> a layer of torch.nn in it that is not registered anywhere in `model`."""
    layers = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_modules", "_forward_hooks", "_forward_pre_hooks"):
                holders = _Holders({})
                holders.replaced(value)
                if holders.layers:
                    layers[f"{path}.{name}".lstrip(".")] = holders.layers[0]
    return layers


class _Holders:
    """Goes through what holds values, each once.

    Attributes:
        layers: those of torch.nn that were met and not replaced.
    """

    def __init__(self, replacements: Mapping[int, nn.Module]) -> None:
        self.layers: list[nn.RNNBase] = []
        self._replacements = replacements
        # By id, with the object itself, whose id is then no other's.
        self._entered: dict[int, Any] = {}

    def enter(self, holder: Any) -> None:
        """Replace what a dict, list or deque holds, and what that holds in turn."""
        if id(holder) in self._entered:
            return
        self._entered[id(holder)] = holder
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            old = holder[key]
            if type(old) in (int, float, str):  # a vocabulary may have a million
                continue
            new = self.replaced(old)
            if new is not old:
                holder[key] = new

    def replaced(self, value: Any) -> Any:
        """What takes the place of a value: mostly itself."""
        if id(value) in self._replacements:
            return self._replacements[id(value)]
        if isinstance(value, nn.Module):
            self.layers += [module for module in value.modules() if isinstance(module, nn.RNNBase)]
        elif isinstance(value, (dict, list, deque)):
            self.enter(value)
        elif type(value) in (tuple, set, frozenset):
            return self._made_again(value)
        elif isinstance(value, tuple) and hasattr(value, "_fields"):  # a namedtuple
            fields = tuple(value)
            new_fields = self._made_again(fields)
            return value if new_fields is fields else type(value)(*new_fields)
        elif isinstance(value, partial):
            parts = (value.func, value.args, value.keywords)
            func, args, keywords = self._made_again(parts)
            if func is not value.func or args is not value.args:
                return partial(func, *args, **keywords)
        elif isinstance(value, MethodType):
            owner = self.replaced(value.__self__)
            if owner is not value.__self__:
                return getattr(owner, value.__name__)
        elif is_plain_object(value):
            self.enter(vars(value))
        return value

    def _made_again(self, values: Any) -> Any:
        new_values = [self.replaced(value) for value in values]
        is_same = all(new is old for new, old in zip(new_values, values, strict=True))
        return values if is_same else type(values)(new_values)


def is_plain_object(value: Any) -> bool:
    """Whether its attributes may hold a layer: not a module, which is visited by itself, nor code."""
    if isinstance(
        value, (type, nn.Module, torch.Tensor, ModuleType, FunctionType, BuiltinFunctionType)
    ):
        return False
    package = type(value).__module__.partition(".")[0]
    return package not in ("builtins", "torch", "numpy") and hasattr(value, "__dict__")
