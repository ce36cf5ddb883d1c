"""The modules of a converted model get classes whose code means the new layers where it named the old."""

from collections.abc import Callable, Mapping, Sequence, Set
from types import FunctionType
from typing import Any

import torch
from torch import nn

from deploy_rnn.held_layers import is_plain_object
from deploy_rnn.nn.recurrent import Recurrent
from deploy_rnn.renewed_code import FOREIGN, RenewedCode, names_in
from deploy_rnn.subclasses import LEFT_OUT, rebuilt

Recipes = tuple[tuple[type[Any], type, type[Any]], ...]
"""Arguments of `rebuilt`, one for each class of layers: what pickle can keep of them."""

KEPT_BY_MODULES = {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"}


def renew_modules(model: nn.Module, originals: Mapping[int, nn.Module], recipes: Recipes) -> None:
    """Make the code of `model` again, in place: methods, hooks, and what its modules keep as attributes.

    A module whose code names one of the classes becomes an object of a subclass of its own class.

    Args:
        model: a converted copy.
        originals: id of a module of `model` -> the one that it is a copy of.
        recipes: what becomes of each class of layers.
    """
    code = _code(recipes)
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if not isinstance(module, Recurrent):
            _set_class(module, code, recipes)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                hooks[key] = code.of(hook)
        kept = vars(originals.get(id(module), module))
        for name, value in vars(module).items():
            # What could not be copied is the original's, too.
            if is_plain_object(value) and value is not kept.get(name):
                _set_class(value, code, recipes)
            elif name not in KEPT_BY_MODULES:
                vars(module)[name] = code.of(value)


def _code(recipes: Recipes) -> RenewedCode:
    return RenewedCode({recipe[1]: rebuilt(*recipe) for recipe in recipes})


def _set_class(value: Any, code: RenewedCode, recipes: Recipes) -> None:
    cls = type(value)
    renewed = _renewed_class(cls, code, recipes)
    if renewed is not cls:
        try:
            value.__class__ = renewed
        except TypeError:  # of another layout, such as one with slots
            return


def _renewed_class(cls: type, code: RenewedCode, recipes: Recipes) -> type:
    """A subclass of `cls` with the methods that mean other classes; `cls` itself if there are none."""
    if (cls, recipes) not in _RENEWED:
        renewed = _Renewal(cls, code).made()
        if renewed is not cls:
            made: Any = renewed
            made._renewed_from = (cls, recipes)
            made.__reduce_ex__ = _reduce
        _RENEWED[cls, recipes] = renewed
    return _RENEWED[cls, recipes]


# So that two modules of one class stay so.
_RENEWED: dict[tuple[type, Recipes], type] = {}


class _Renewal:
    """Makes a subclass of one class.

    It comes first in the order of methods, and then the old classes as they were. So a method of a parent that
    `super()` would find in the old order needs a place of its own: for each class with a method that calls one, two
    classes are put before the old ones. At the first one `super()` begins, and the second has what it finds.
    """

    def __init__(self, cls: type, code: RenewedCode) -> None:
        self._cls = cls
        self._code = code
        self._bases: tuple[type, ...] = (cls,)
        self._renewed: dict[tuple[type, str], Any] = {}
        self._names: set[str] = set()

    def made(self) -> type:
        # Parents first: what `super()` means is then known.
        for owner in reversed(self._cls.__mro__):
            if owner.__module__.partition(".")[0] not in FOREIGN:
                self._renew_members(owner)
        if not self._names:
            return self._cls
        members = self._found(self._names, self._cls.__mro__)
        return self._new_class(self._cls, members)

    def _renew_members(self, owner: type) -> None:
        members = {name: value for name, value in vars(owner).items() if name not in LEFT_OUT}
        for name, value in members.items():
            new_value = self._code.of(value)
            if new_value is not value:
                self._keep(owner, name, new_value)
        after = self._cls.__mro__[self._cls.__mro__.index(owner) + 1 :]
        callers = [name for name, value in members.items() if self._calls_renewed(value, after)]
        if not callers:
            return
        named = frozenset().union(*(names_in(members[name].__code__) for name in callers))
        found = self._found(named, after)
        self._bases = (self._new_class(owner, found),)
        self._bases = (self._new_class(owner, {}),)
        self._names |= found.keys()
        for name in callers:
            function = self._renewed.get((owner, name), members[name])
            self._keep(owner, name, self._code.with_super(function, self._bases[0]))

    def _keep(self, owner: type, name: str, value: Any) -> None:
        self._renewed[owner, name] = value
        self._names.add(name)

    def _calls_renewed(self, value: Any, after: Sequence[type]) -> bool:
        """Whether a method calls, by `super()`, one of a parent that is made again."""
        if not isinstance(value, FunctionType) or "__class__" not in value.__code__.co_freevars:
            return False
        names = names_in(value.__code__)
        owners = {name: cls for cls in reversed(after) for name in names & vars(cls).keys()}
        return any((cls, name) in self._renewed for name, cls in owners.items())

    def _found(self, names: Set[str], mro: Sequence[type]) -> dict[str, Any]:
        """Each name -> what it means for an object whose classes are `mro`."""
        found: dict[str, Any] = {}
        for cls in reversed(mro):
            for name in names & vars(cls).keys() - LEFT_OUT:
                found[name] = self._renewed.get((cls, name), vars(cls)[name])
        return found

    def _new_class(self, named: type, members: Mapping[str, Any]) -> type:
        """A class before those that there are, under the name of an old one."""
        names = {"__module__": named.__module__, "__qualname__": named.__qualname__}
        return type(self._cls)(named.__name__, self._bases, {**members, **names})


def _reduce(value: Any, _: int) -> tuple[Callable[..., Any], Any, Any]:
    """How copy and pickle make such an object: its class is nowhere by name."""
    return _empty_object, type(value)._renewed_from, value.__getstate__()


def _empty_object(cls: type, recipes: Recipes) -> Any:
    return object.__new__(_renewed_class(cls, _code(recipes), recipes))
