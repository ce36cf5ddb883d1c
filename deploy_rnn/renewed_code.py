"""Code made again so that the classes that it names mean others: functions, and the functions that they call."""

import functools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, UnionType
from typing import Any
from weakref import WeakKeyDictionary

FOREIGN = frozenset({"torch", "deploy_rnn", "numpy"}) | sys.stdlib_module_names
"""Packages whose functions do not ask about a layer of the model's."""

MOST_ITEMS = 100
"""Of a tuple, a list, a set or a dict of classes; a longer one is a vocabulary."""

MOST_MODULES = 4
"""Within one another, as in `torch.nn.modules.rnn.LSTM`."""

CachedFunction = functools._lru_cache_wrapper


def original_of(function: FunctionType) -> FunctionType:
    """What a function was made from; the function itself if it is no renewed one."""
    return _ORIGINALS.get(function, function)


_ORIGINALS: "WeakKeyDictionary[FunctionType, FunctionType]" = WeakKeyDictionary()


def is_dispatch(value: Any) -> bool:
    """Whether this is a function of `functools.singledispatch`."""
    return hasattr(value, "registry") and callable(getattr(value, "dispatch", None))


def names_in(code: CodeType) -> frozenset[str]:
    """Every global and attribute that a function, and the functions in it, name."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_in(constant)
    return frozenset(names)


class RenewedCode:
    """Makes values again in which some classes are others; what means none of the classes stays the same object.

    1. A class is a global, such as the `Layer` of `Layer.forward(self, x)`; in a closure, as that of `super()` and one
       that is defined in a function; or a default of an argument.
    2. It is within a value: a tuple, a dict of handlers, `nn.LSTM | nn.GRU`, a `partial`, what `singledispatch` chooses
       from.
    3. It is an attribute of a module, such as `nn.LSTM`: the function gets a copy of the module.
    4. Another function names it, which this one calls, or a decorator has in its closure.

    Args:
        classes: a class -> what it is to mean.
    """

    def __init__(self, classes: Mapping[type, type]) -> None:
        self._classes = classes
        self._meaning: set[int] = set()
        # By id, with the function itself, whose id is then no other's.
        self._seen: dict[int, FunctionType] = {}
        self._renewed: dict[int, FunctionType] = {}
        self._modules: dict[tuple[ModuleType, frozenset[str]], ModuleType] = {}

    def of(self, value: Any, names: frozenset[str] = frozenset()) -> Any:
        """The value, made again if it means one of the classes.

        Args:
            names: attributes of `value` that are used; of a module, only these are looked at.
        """
        self._find_functions(value, names)
        return self._of(value, names)

    def with_super(self, function: FunctionType, start: type) -> FunctionType:
        """A method made again in which `super()` begins after the class `start`."""
        self._find_functions(function, frozenset())
        return self._made(function, start)

    # Which functions mean one of the classes.

    def _find_functions(self, value: Any, names: frozenset[str]) -> None:
        """Add to `_meaning` every function below `value` that names a class, or a function that does."""
        waiting = [leaf for leaf in _leaves(value, names) if isinstance(leaf, FunctionType)]
        found = []
        while waiting:
            function = waiting.pop()
            if id(function) in self._seen or _is_foreign(function):
                continue
            self._seen[id(function)] = function
            leaves = [*_leaves_of_function(function)]
            found.append((function, leaves))
            waiting += [leaf for leaf in leaves if isinstance(leaf, FunctionType)]
        # Functions may call one another in circles.
        while True:
            before = len(self._meaning)
            for function, leaves in found:
                if any(map(self._is_meant, leaves)):
                    self._meaning.add(id(function))
            if len(self._meaning) == before:
                return

    def _is_meant(self, leaf: type | FunctionType) -> bool:
        if isinstance(leaf, FunctionType):
            return id(leaf) in self._meaning
        return leaf in self._classes

    def _means(self, value: Any, names: frozenset[str]) -> bool:
        return any(map(self._is_meant, _leaves(value, names)))

    # What takes their place.

    def _of(self, value: Any, names: frozenset[str]) -> Any:
        if not self._means(value, names):
            return value
        again = functools.partial(self._of, names=names)
        if isinstance(value, type):
            return self._classes[value]
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, ModuleType):
            return self._module(value, names)
        if type(value) is dict:
            return {again(key): again(item) for key, item in value.items()}
        if type(value) in (tuple, list, set, frozenset):
            return type(value)(map(again, value))
        if isinstance(value, UnionType):
            return functools.reduce(operator.or_, map(again, value.__args__))
        if isinstance(value, functools.partial):
            keywords = again(value.keywords)
            return functools.partial(again(value.func), *map(again, value.args), **keywords)
        if isinstance(value, CachedFunction):
            parameters = value.cache_parameters()
            return functools.lru_cache(**parameters)(again(value.__wrapped__))
        return _with_function(value, again)

    def _function(self, function: FunctionType) -> FunctionType:
        if id(function) not in self._renewed:
            if is_dispatch(function):
                return self._dispatch(function)
            self._made(function, None)
        return self._renewed[id(function)]

    def _made(self, function: FunctionType, start: type | None) -> FunctionType:
        names = names_in(function.__code__)
        renewed = FunctionType(
            function.__code__,
            function.__globals__.copy(),
            function.__name__,
            closure=tuple(
                CellType() if name == "__class__" and start else self._cell(cell, names)
                for name, cell in _cells(function)
            ),
        )
        # Before what it calls, which may call it.
        self._renewed[id(function)] = renewed
        _ORIGINALS[renewed] = original_of(function)
        self._fill_globals(renewed.__globals__, names)
        for (name, cell), new_cell in zip(_cells(function), renewed.__closure__ or (), strict=True):
            if name == "__class__" and start:
                new_cell.cell_contents = start
            elif new_cell is not cell:
                new_cell.cell_contents = self._of(cell.cell_contents, names)
        functools.update_wrapper(renewed, function)
        del renewed.__wrapped__  # type: ignore[attr-defined]
        for name, value in vars(function).items():
            setattr(renewed, name, self._of(value, names))
        renewed.__defaults__ = self._of(function.__defaults__, names)
        renewed.__kwdefaults__ = self._of(function.__kwdefaults__, names)
        return renewed

    def _cell(self, cell: CellType, names: frozenset[str]) -> CellType:
        """The cell itself, which functions may share, or an empty one."""
        try:
            return CellType() if self._means(cell.cell_contents, names) else cell
        except ValueError:  # not assigned yet
            return cell

    def _fill_globals(self, scope: dict[str, Any], names: frozenset[str]) -> None:
        for name in names & scope.keys():
            scope[name] = self._of(scope[name], names)
        if "__name__" not in names:
            # torch.compile would look the names up in the module of that name.
            scope.pop("__name__", None)

    def _dispatch(self, function: Any) -> FunctionType:
        renewed: Any = functools.singledispatch(self._of(function.__wrapped__, frozenset()))
        self._renewed[id(function)] = renewed
        _ORIGINALS[renewed] = original_of(function)
        for cls, implementation in function.registry.items():
            if cls is not object:
                renewed.register(self._classes.get(cls, cls), self._of(implementation, frozenset()))
        return self._renewed[id(function)]

    def _module(self, module: ModuleType, names: frozenset[str]) -> ModuleType:
        if (module, names) not in self._modules:
            # Before what is in it, which may have the module.
            renewed = self._modules[module, names] = ModuleType(module.__name__)
            vars(renewed).update(vars(module))
            for name in names & vars(module).keys():
                vars(renewed)[name] = self._of(vars(module)[name], names)
        return self._modules[module, names]


def _with_function(value: Any, change: Callable[[Any], Any]) -> Any:
    """A descriptor or a bound method with `change` made to its functions."""
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)(change(value.__func__))
    if isinstance(value, MethodType):
        return MethodType(change(value.__func__), value.__self__)
    if type(value) is property:
        return property(change(value.fget), change(value.fset), change(value.fdel))
    new_value = functools.cached_property(change(value.func))
    new_value.__set_name__(object, str(value.attrname))
    return new_value


def _leaves(
    value: Any, names: frozenset[str], within: tuple[Any, ...] = ()
) -> Iterator[type | FunctionType]:
    """The classes and functions that a value is made of."""
    if isinstance(value, (type, FunctionType)):
        yield value
        return
    if any(value is outer for outer in within):
        return
    for part in _parts(value, names, within):
        yield from _leaves(part, names, (*within, value))


def _parts(value: Any, names: frozenset[str], within: tuple[Any, ...]) -> Iterable[Any]:
    if isinstance(value, ModuleType):
        is_read = len(within) < MOST_MODULES and value.__name__ not in sys.stdlib_module_names
        return [vars(value)[name] for name in names & vars(value).keys()] if is_read else ()
    if type(value) in (dict, tuple, list, set, frozenset):
        if len(value) > MOST_ITEMS:
            return ()
        return (*value.keys(), *value.values()) if type(value) is dict else value
    if isinstance(value, UnionType):
        return value.__args__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, CachedFunction):
        return (value.__wrapped__,)
    if isinstance(value, (staticmethod, classmethod, MethodType)):
        return (value.__func__,)
    if type(value) is property:
        return value.fget, value.fset, value.fdel
    return (value.func,) if isinstance(value, functools.cached_property) else ()


def _leaves_of_function(function: FunctionType) -> Iterator[type | FunctionType]:
    names = names_in(function.__code__)
    scope = function.__globals__
    values = [scope[name] for name in names & scope.keys()]
    for _, cell in _cells(function):
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    values += [function.__defaults__, function.__kwdefaults__, *vars(function).values()]
    if is_dispatch(function):
        values.append(dict(function.registry))  # type: ignore[attr-defined]
    for value in values:
        yield from _leaves(value, names)


def _cells(function: FunctionType) -> list[tuple[str, CellType]]:
    names = function.__code__.co_freevars
    return [*zip(names, function.__closure__ or (), strict=True)]


def _is_foreign(function: FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] in FOREIGN
