"""A subclass of a layer of torch.nn becomes the same subclass of ours: its methods, its `forward` and its `super()`."""

import functools
from collections.abc import Callable, Mapping
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

from torch import nn

from deploy_rnn.held_layers import changed_cell
from deploy_rnn.nn.recurrent import Recurrent

LEFT_OUT = {
    "__dict__", "__weakref__", "__slots__", "__init__", "__init_subclass__", "__orig_bases__", "__parameters__",
    "__abstractmethods__", "__constants__", "__jit_unused_properties__",
}  # fmt: skip
"""What the copy of a class does not have: what a class keeps about itself, and the constructor, since a layer is made
from the one that it replaces."""


def classes_above(cls: type, torch_class: type[nn.RNNBase]) -> tuple[list[type], list[type]]:
    """The classes that `cls` adds to `torch_class`, the most derived first.

    Returns:
        Those before `torch_class` in the order of methods, and those after it: Mixin in `class Layer(nn.LSTM, Mixin)`.
    """
    mro = [other for other in cls.__mro__ if other.__module__ not in ("abc", "typing")]
    position = mro.index(torch_class)
    mixins = [other for other in mro[position:] if other not in torch_class.__mro__]
    return mro[:position], mixins


def rebuilt(ours: type[Recurrent], cls: type, torch_class: type[nn.RNNBase]) -> type[Recurrent]:
    """`cls`, a subclass of `torch_class`, with `ours` in the place of `torch_class`; one class for each."""
    before, after = classes_above(cls, torch_class)
    if not before:
        return ours
    made_of = (ours, cls, torch_class)
    if made_of not in _REBUILT:
        _REBUILT[made_of] = _rebuild(ours, before, after)
        _REBUILT[made_of]._made_of = made_of  # type: ignore[attr-defined]
        _REBUILT[made_of].__reduce_ex__ = _reduce  # type: ignore[method-assign, assignment]
    return _REBUILT[made_of]


# So that two layers of one class stay so.
_REBUILT: dict[tuple[type[Recurrent], type, type[nn.RNNBase]], type[Recurrent]] = {}


def _rebuild(ours: type[Recurrent], before: list[type], after: list[type]) -> type[Recurrent]:
    """A class for each of the old ones, each derived from the next, which is the order in which methods are found."""
    new_classes: dict[type, type] = {}
    last: type = object
    for cls in reversed(after):
        last = new_classes[cls] = type(cls.__name__, (last,), _members(cls))
    bases: tuple[type, ...] = (ours,) if last is object else (ours, last)
    for cls in reversed(before):
        bases = (type(cls.__name__, bases, _members(cls)),)
        new_classes[cls] = bases[0]
    # Only now is every class there that a method may name.
    methods = _Methods(new_classes)
    for old, new in new_classes.items():
        for name, value in _members(old).items():
            new_value = methods.of(value)
            if new_value is not value:
                setattr(new, name, new_value)
    return new_classes[before[0]]


def _members(cls: type) -> dict[str, Any]:
    """What a class defines, as far as a copy has it."""
    members = {}
    for name, value in vars(cls).items():
        kept = name not in LEFT_OUT and not name.startswith("_abc_")
        if kept and not isinstance(value, (GetSetDescriptorType, MemberDescriptorType)):
            members[name] = value
    return members | {"__module__": cls.__module__, "__qualname__": cls.__qualname__}


class _Methods:
    """Methods of old classes, made again so that they mean the new ones.

    1. `super()` and a class that is defined within a function: both are in the closure.
    2. `super(Layer, self)` and `Layer.forward(self, x)`: `Layer` is a global of the module.
    3. A decorator keeps the function that it wraps in its closure; a property or a classmethod as an attribute.
    """

    def __init__(self, classes: Mapping[type, type]) -> None:
        self._classes = classes

    def of(self, value: Any) -> Any:
        """The value itself if it means none of the classes."""
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, (staticmethod, classmethod)):
            function = self.of(value.__func__)
            return value if function is value.__func__ else type(value)(function)
        if type(value) is property:
            parts = (value.fget, value.fset, value.fdel)
            new_parts = [self.of(part) for part in parts]
            return value if _same(parts, new_parts) else property(*new_parts)
        if isinstance(value, functools.cached_property):
            function = self.of(value.func)
            if function is value.func:
                return value
            new_value = functools.cached_property(function)
            new_value.__set_name__(Recurrent, str(value.attrname))
            return new_value
        return value

    def _function(self, function: FunctionType) -> FunctionType:
        cells = function.__closure__ or ()
        new_cells = [changed_cell(cell, self._in_closure) for cell in cells]
        new_globals = self._globals(function)
        if _same(cells, new_cells) and new_globals is function.__globals__:
            return function
        method = FunctionType(
            function.__code__,
            new_globals,
            function.__name__,
            function.__defaults__,
            tuple(new_cells),
        )
        functools.update_wrapper(method, function)
        method.__kwdefaults__ = function.__kwdefaults__
        return method

    def _in_closure(self, content: Any) -> Any:
        if isinstance(content, type):
            return self._classes.get(content, content)
        return self._function(content) if isinstance(content, FunctionType) else content

    def _globals(self, function: FunctionType) -> dict[str, Any]:
        """Those of the function, or a copy in which the names of old classes mean the new ones."""
        names = function.__code__.co_names
        renamed: dict[str, Any] = {}
        for name in names:
            value = function.__globals__.get(name)
            if isinstance(value, type) and value in self._classes:
                renamed[name] = self._classes[value]
        if not renamed:
            return function.__globals__
        new_globals = function.__globals__ | renamed
        if "__name__" not in names:
            # torch.compile would look the names up in the module of that name.
            del new_globals["__name__"]
        return new_globals


def _same(old: Any, new: Any) -> bool:
    return all(one is other for one, other in zip(old, new, strict=True))


def _reduce(layer: Recurrent, _: int) -> tuple[Callable[..., Any], Any, Any]:
    """How copy and pickle make such a layer: its class is nowhere by name."""
    return _empty_layer, layer._made_of, vars(layer)


def _empty_layer(ours: type[Recurrent], cls: type, torch_class: type[nn.RNNBase]) -> Recurrent:
    new_class = rebuilt(ours, cls, torch_class)
    return object.__new__(new_class)
