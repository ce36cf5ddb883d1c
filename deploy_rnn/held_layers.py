"""Layers that a module holds outside its registered submodules: in a list, a dict, another object, a closure."""

from collections import deque
from collections.abc import Callable, Container, Mapping
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn


def replace_held_layers(
    model: nn.Module,
    replacements: Mapping[int, nn.Module],
    within: Container[int] | None = None,
) -> None:
    """Put the replacement of each layer, by its id, wherever else the modules of `model` hold the layer itself.

    Lists, dicts and objects are changed in place; a tuple, a set, a `partial`, a bound method and a function with the
    layer in its closure or its defaults are made again. What is in a list or an object in a closure stays.

    Args:
        model: its modules are changed.
        replacements: id of a layer -> what takes its place.
        within: the ids of the lists, dicts and objects that may be changed; None for all.
    """
    holders = _Holders(replacements, within)
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

    def __init__(
        self, replacements: Mapping[int, nn.Module], within: Container[int] | None = None
    ) -> None:
        self.layers: list[nn.RNNBase] = []
        self._replacements = replacements
        self._within = within
        self._functions: dict[int, tuple[FunctionType, FunctionType]] = {}
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

    def _may_change(self, holder: Any) -> bool:
        return self._within is None or id(holder) in self._within

    def replaced(self, value: Any) -> Any:
        """What takes the place of a value: mostly itself."""
        if id(value) in self._replacements:
            return self._replacements[id(value)]
        if isinstance(value, nn.Module):
            self.layers += [module for module in value.modules() if isinstance(module, nn.RNNBase)]
        elif isinstance(value, (dict, list, deque)):
            if self._may_change(value):
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
        elif isinstance(value, FunctionType):
            return self._function(value)
        elif isinstance(value, MethodType):
            owner = self.replaced(value.__self__)
            if owner is not value.__self__:
                # Not the owner's attribute: that may be a function which calls this method.
                method: MethodType = getattr(type(owner), value.__name__).__get__(owner)
                return method
        elif is_plain_object(value) and self._may_change(value):
            self.enter(vars(value))
        return value

    def _function(self, function: FunctionType) -> FunctionType:
        """A function that means the replacements; the same one for each."""
        if id(function) in self._functions:
            return self._functions[id(function)][1]
        self._functions[id(function)] = (function, function)
        cells = function.__closure__ or ()
        defaults = function.__defaults__ or ()
        new_cells = tuple(changed_cell(cell, self._in_function) for cell in cells)
        new_defaults = tuple(self._in_function(value) for value in defaults)
        pairs = zip((*cells, *defaults), (*new_cells, *new_defaults), strict=True)
        if all(new is old for old, new in pairs):
            return function
        new_function = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            new_defaults or None,
            new_cells,
        )
        new_function.__kwdefaults__ = function.__kwdefaults__
        new_function.__dict__.update(function.__dict__)
        new_function.__module__ = function.__module__
        new_function.__qualname__ = function.__qualname__
        self._functions[id(function)] = (function, new_function)
        return new_function

    def _in_function(self, value: Any) -> Any:
        """What takes the place of a value in a function, which a list or an object there may share with others."""
        if isinstance(value, (nn.Module, FunctionType)) or (
            isinstance(value, MethodType) and isinstance(value.__self__, nn.Module)
        ):
            return self.replaced(value)
        return value

    def _made_again(self, values: Any) -> Any:
        new_values = [self.replaced(value) for value in values]
        is_same = all(new is old for new, old in zip(new_values, values, strict=True))
        return values if is_same else type(values)(new_values)


def changed_cell(cell: CellType, change: Callable[[Any], Any]) -> CellType:
    """A cell of a closure with what `change` makes of its content; the same cell if that stays the same."""
    try:
        content = cell.cell_contents
    except ValueError:  # not assigned yet
        return cell
    new_content = change(content)
    return cell if new_content is content else CellType(new_content)


def is_plain_object(value: Any) -> bool:
    """Whether its attributes may hold a layer: not a module, which is visited by itself, nor code."""
    if isinstance(
        value, (type, nn.Module, torch.Tensor, ModuleType, FunctionType, BuiltinFunctionType)
    ):
        return False
    package = type(value).__module__.partition(".")[0]
    return package not in ("builtins", "torch", "numpy") and hasattr(value, "__dict__")
