"""A subclass of a layer of torch.nn becomes the same subclass of ours: its methods, its `forward` and its `super()`."""

from collections.abc import Callable
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

from torch import nn

from deploy_rnn.nn.recurrent import Recurrent
from deploy_rnn.renewed_code import RenewedCode

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
        _REBUILT[made_of] = _rebuild(ours, torch_class, before, after)
        _REBUILT[made_of]._made_of = made_of  # type: ignore[attr-defined]
        _REBUILT[made_of].__reduce_ex__ = _reduce  # type: ignore[method-assign, assignment]
    return _REBUILT[made_of]


# So that two layers of one class stay so.
_REBUILT: dict[tuple[type[Recurrent], type, type[nn.RNNBase]], type[Recurrent]] = {}


def _rebuild(
    ours: type[Recurrent], torch_class: type[nn.RNNBase], before: list[type], after: list[type]
) -> type[Recurrent]:
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
    code = RenewedCode(new_classes | {torch_class: ours})
    for old, new in new_classes.items():
        for name, value in _members(old).items():
            new_value = code.of(value)
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


def _reduce(layer: Recurrent, _: int) -> tuple[Callable[..., Any], Any, Any]:
    """How copy and pickle make such a layer: its class is nowhere by name."""
    return _empty_layer, layer._made_of, vars(layer)


def _empty_layer(ours: type[Recurrent], cls: type, torch_class: type[nn.RNNBase]) -> Recurrent:
    new_class = rebuilt(ours, cls, torch_class)
    return object.__new__(new_class)
