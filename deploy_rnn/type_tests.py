"""Where a model's code depends on the class of a recurrent layer, so that another class would change what it does."""

import ast
import dis
import functools
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType, UnionType
from typing import Any

from torch import nn

from deploy_rnn.held_layers import is_plain_object
from deploy_rnn.renewed_code import CachedFunction, is_dispatch, names_in, original_of

UNKNOWN = object()
"""The value of an expression that only a run of the model could tell."""

QUESTIONS = {"isinstance", "issubclass", "type", "__class__"}

TORCH_ONLY = {"forward", "_flat_weights"}
"""What code may reach of torch.nn's own layers, beyond what it asks of a layer of any class."""


@dataclass(frozen=True)
class Layer:
    """A layer that is to become another, or stays: where it is, what it is, and its next class."""

    path: str
    module: nn.Module
    next_class: type


@dataclass(frozen=True)
class TypeTest:
    """A question in the code, whose answer is another for a layer of the next class.

    Attributes:
        place: file and line.
        question: as it is written there, such as `isinstance(self.rnn, nn.LSTM)`.
        layer: one that it concerns.
    """

    place: str
    question: str
    layer: Layer

    def __str__(self) -> str:
        cls = type(self.layer.module)
        if isinstance(self.layer.module, nn.RNNBase):
            advice = f"Ask for the layer's `mode` there, which stays {self.layer.module.mode!r}."
        else:
            advice = "Use `isinstance` there, which stays true."
        becomes = f"would no longer be a {qualified_name(cls)}"
        if self.layer.next_class is cls:
            becomes = f"stays a {qualified_name(cls)}, and the other layers do not"
        return (
            f"{described(self.layer.path)} {becomes}, and the model asks for that: `{self.question}` at {self.place}. "
            f"{advice}"
        )


@dataclass(frozen=True)
class TorchUse:
    """Code that runs torch.nn's own layer, whatever took the place of it.

    Attributes:
        place: file and line.
        code: as it is written there, such as `nn.LSTM.forward(self.rnn, x)`.
    """

    place: str
    code: str

    def __str__(self) -> str:
        return (
            f"`{self.code}` at {self.place} needs a layer of torch.nn, which is replaced; call the layer itself, "
            "`layer(x)`, or `super().forward(x)` in a subclass."
        )


def type_tests(
    model: nn.Module, layers: Mapping[int, Layer], originals: Mapping[int, Any] | None = None
) -> Iterator[TypeTest | TorchUse]:
    """Read everything that the forwards of `model` run, as far as it can be told without running it.

    The text of what is found says what is wrong, and what to do. A question that decides on nothing but
    `flatten_parameters()` is left out.

    Args:
        model: any module; or a converted one, whose code may mean the new layers.
        layers: id of a layer of `model` -> what becomes, or became, of it. One that stays may be among them.
        originals: for a converted model: id of a module -> the one that it is a copy of.
    """
    if not layers:
        return
    walk = _Walk(layers, originals)
    for module in model.modules():
        for function, owner in _entrances(module):
            yield from walk.function(function, owner)


def _entrances(module: nn.Module) -> Iterator[tuple[Any, Any]]:
    """What a call of `module` runs, and the first argument of each."""
    yield from _methods(module, "forward")
    for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
        yield hook, module


def _methods(owner: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """The method of an object, with its `self`."""
    own = getattr(owner, "__dict__", {}).get(name)
    if isinstance(own, (FunctionType, MethodType)):
        yield own, None
    else:
        yield from _method(owner, name, type(owner).__mro__)


def _method(owner: Any, name: str, mro: Sequence[type]) -> Iterator[tuple[Any, Any]]:
    """The first method of the name in these classes, with its `self`."""
    cls = next((cls for cls in mro if name in vars(cls)), object)
    value = vars(cls).get(name)
    function = _function(value)
    if function is not None:
        yield function, None if isinstance(value, staticmethod) else owner


def _methods_of_super(function: FunctionType, owner: Any) -> Iterator[tuple[Any, Any]]:
    """The methods that `super()` may mean in a method of `owner`."""
    mro = type(owner).__mro__
    # That of `super()`, and of `super(Layer, self)`.
    named = [_closure(function).get("__class__")]
    named += [function.__globals__.get(name) for name in _globals(function.__code__)]
    for start in named:
        if isinstance(start, type) and start in mro:
            for name in sorted(names_in(function.__code__)):
                yield from _method(owner, name, mro[mro.index(start) + 1 :])


def _function(value: Any) -> FunctionType | None:
    """The Python function behind a method, a property or a decorator."""
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, functools.cached_property):
        value = value.func
    if isinstance(value, (MethodType, staticmethod, classmethod)):
        value = value.__func__
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, FunctionType) else None


def _globals(code: CodeType) -> set[str]:
    """Every global that a function, and the functions in it, name: not `scale` of `self.scale`."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _globals(constant)
    return names


class _Walk:
    """Goes from a function to those that it calls, to each once."""

    def __init__(self, layers: Mapping[int, Layer], originals: Mapping[int, Any] | None) -> None:
        self._layers = layers
        self._originals = originals
        self._visited: set[tuple[CodeType, int]] = set()

    def function(self, function: Any, owner: Any) -> Iterator[TypeTest | TorchUse]:
        """`owner`: what `self` is in it."""
        if isinstance(function, MethodType):
            owner = function.__self__
        plain = _function(function)
        if plain is None or _is_foreign(plain):
            return
        key = (plain.__code__, id(owner))
        if key in self._visited:
            return
        self._visited.add(key)
        names = names_in(plain.__code__)
        # `match` asks without a word of its own.
        if names & QUESTIONS or _matches(plain.__code__):
            yield from self._reader(plain, owner).tests()
        if names & TORCH_ONLY:
            yield from self._reader(plain, owner).torch_uses()
        yield from self._dispatches(plain)
        for called, called_owner in _called(plain, owner, names):
            yield from self.function(called, called_owner)

    def _reader(self, function: FunctionType, owner: Any) -> "_Reader":
        before = None
        if self._originals is not None:
            original_owner = self._originals.get(id(owner))
            before = _Reader(original_of(function), original_owner, self._layers)
        return _Reader(function, owner, self._layers, before)

    def _dispatches(self, function: FunctionType) -> Iterator[TypeTest]:
        """Functions of `functools.singledispatch` that it names, which would choose another implementation."""
        code = function.__code__
        for name in sorted(_globals(code)):
            chosen = function.__globals__.get(name)
            before = original_of(function).__globals__.get(name)
            if chosen is None or before is None or not is_dispatch(chosen):
                continue
            for layer in self._layers.values():
                implementation = before.dispatch(type(layer.module))
                if original_of(chosen.dispatch(layer.next_class)) is not implementation:
                    place = f"{code.co_filename}:{code.co_firstlineno}"
                    yield TypeTest(place, f"singledispatch of {name}", layer)


def _is_foreign(function: FunctionType) -> bool:
    """Whether a function is PyTorch's or ours: neither asks about a layer of the model's."""
    package = (function.__module__ or "").partition(".")[0]
    return package in ("torch", "deploy_rnn")


def _matches(code: CodeType) -> bool:
    return any(instruction.opname == "MATCH_CLASS" for instruction in dis.get_instructions(code))


def _called(function: FunctionType, owner: Any, names: Set[str]) -> Iterator[tuple[Any, Any]]:
    """The functions that the names in a function may stand for, each with its `self`."""
    owners = [owner] if owner is not None else []
    if isinstance(owner, nn.Module):
        owners += owner.children()
        owners += [value for value in vars(owner).values() if is_plain_object(value)]
    for name in sorted(names):
        for candidate in owners:
            yield from _methods(candidate, name)
    if owner is not None and "super" in names:
        yield from _methods_of_super(function, owner)
    values = [function.__globals__.get(name) for name in sorted(_globals(function.__code__))]
    # The class of `super()` has its methods above.
    values += [value for name, value in _closure(function).items() if name != "__class__"]
    for value in values:
        if isinstance(value, (FunctionType, MethodType)):
            yield value, None
        elif isinstance(value, (ModuleType, type)):
            for name in sorted(names & vars(value).keys()):
                # What is called on a class has no `self` that is known.
                yield vars(value)[name], None
        elif isinstance(value, CachedFunction):
            yield value, None
        elif isinstance(value, dict):
            for handler in value.values():
                yield handler, None


def _closure(function: FunctionType) -> dict[str, Any]:
    values = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return values


class _Reader:
    """Reads one function.

    Args:
        before: of the function that it is made from, if it is a renewed one.
    """

    def __init__(
        self,
        function: FunctionType,
        owner: Any,
        layers: Mapping[int, Layer],
        before: "_Reader | None" = None,
    ) -> None:
        self._before = before or self
        self._function = function
        self._owner = owner
        self._layers = layers
        code = function.__code__
        self._locals = set(code.co_varnames) | set(code.co_cellvars)
        self._scope = {**function.__globals__, **_closure(function)}
        if owner is not None and code.co_argcount:
            self_name = code.co_varnames[0]
            self._locals.discard(self_name)
            self._scope[self_name] = owner

    @functools.cached_property
    def _assigned(self) -> dict[str, ast.expr]:
        """Local variable -> its value, of those that are assigned once."""
        tree, _ = _parsed(self._function)
        return {} if tree is None else dict(_assignments(tree))

    def tests(self) -> Iterator[TypeTest]:
        tree, first_line = _parsed(self._function)
        if tree is None:
            yield from self._tests_without_source()
            return
        harmless = {id(node) for node in _harmless(tree)}
        for node in ast.walk(tree):
            if id(node) in harmless:
                continue
            for question in _questions(node, self._assigned):
                layer = self._changed(question)
                if layer is not None:
                    line = first_line + question.node.lineno - 1
                    place = f"{self._function.__code__.co_filename}:{line}"
                    yield TypeTest(place, ast.unparse(question.node), layer)

    def torch_uses(self) -> Iterator[TorchUse]:
        """1. nn.LSTM.forward(layer, x), or a subclass's, of which a method of its own may call it.
        2. layer._flat_weights, for `torch._VF.lstm(x, hx, self.rnn._flat_weights, ...)`; ours can be assigned to it.
        """
        tree, first_line = _parsed(self._function)
        for node in ast.walk(tree) if tree else ():
            if isinstance(node, ast.Attribute) and self._is_torch_use(node):
                line = first_line + node.lineno - 1
                place = f"{self._function.__code__.co_filename}:{line}"
                yield TorchUse(place, ast.unparse(node))

    def _is_torch_use(self, node: ast.Attribute) -> bool:
        value = self._value(node.value)
        # Case 1.
        if node.attr == "forward" and isinstance(value, type) and issubclass(value, nn.RNNBase):
            is_torchs_own = value.__module__.startswith("torch.")
            return is_torchs_own or not isinstance(self._owner, value)
        # Case 2.
        is_read = isinstance(node.ctx, ast.Load)
        return node.attr == "_flat_weights" and is_read and id(value) in self._layers

    def _changed(self, question: "_Question") -> Layer | None:
        """A layer for which the answer changes, if there is one."""
        value = self._value(question.subject)
        if value is not UNKNOWN and (id(value) not in self._layers or not question.is_typed):
            return None
        concerned = self._layers.values() if value is UNKNOWN else [self._layers[id(value)]]
        old_classes = self._before._value(question.classes)
        classes = self._value(question.classes)
        exact = question.exact
        # A table may have something else for the new class.
        is_other_key = question.is_table and self._before is self and value is not UNKNOWN
        for layer in concerned:
            if classes is UNKNOWN or old_classes is UNKNOWN or is_other_key:
                # About an unknown object, that is hardly ever a question about a layer.
                if value is not UNKNOWN:
                    return layer
            elif _answer(type(layer.module), old_classes, exact) != _answer(
                layer.next_class, classes, exact
            ):
                return layer
        return None

    def _value(self, node: ast.expr) -> Any:
        """What an expression is, if that does not depend on the call."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            if node.id in self._assigned:
                return self._value(self._assigned[node.id])
            return UNKNOWN if node.id in self._locals else self._scope.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            return _attribute(self._value(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return _item(self._value(node.value), self._value(node.slice))
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            return tuple(self._value(element) for element in node.elts)
        if isinstance(node, ast.Dict):
            return tuple(self._value(key) if key else UNKNOWN for key in node.keys)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return (self._value(node.left), self._value(node.right))
        return UNKNOWN

    def _tests_without_source(self) -> Iterator[TypeTest]:
        """The class that is named next to a question, where there is no text to read."""
        code = self._function.__code__
        names = names_in(code)
        if not names & QUESTIONS:
            return
        values = [self._scope.get(name) for name in names]
        named = [value for value in values if isinstance(value, (type, tuple))]
        named += [getattr(nn, name) for name in names if name in ("RNN", "GRU", "LSTM", "RNNBase")]
        for layer in self._layers.values():
            for classes in named:
                if _answer(type(layer.module), classes, False) != _answer(
                    layer.next_class, classes, False
                ):
                    place = f"{code.co_filename}:{code.co_firstlineno}"
                    asked = ", ".join(sorted(names & QUESTIONS))
                    yield TypeTest(place, f"{asked} in {code.co_name}", layer)
                    return


def _parsed(function: FunctionType) -> tuple[ast.AST | None, int]:
    """The tree of a function, and the line of the file that its first line is."""
    try:
        lines, first_line = inspect.getsourcelines(function)
        # A method is indented, and a text in it may not be.
        if lines[0][:1].isspace():
            return ast.parse("if True:\n" + "".join(lines)), first_line - 1
        return ast.parse("".join(lines)), first_line
    except (OSError, TypeError, SyntaxError, IndexError):
        return None, 0


def _assignments(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    nodes = [*ast.walk(tree)]
    names = Counter(
        node.id
        for node in nodes
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    )
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            name = target.id if isinstance(target, ast.Name) else ""
            if names[name] == 1 and name not in arguments:
                yield name, node.value


def _harmless(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node of a condition on which nothing depends but `flatten_parameters()`, which ours have too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and not node.orelse and all(map(_only_flattens, node.body)):
            yield from ast.walk(node.test)


def _only_flattens(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    called = statement.value.func
    return isinstance(called, ast.Attribute) and called.attr == "flatten_parameters"


@dataclass(frozen=True)
class _Question:
    """A question in a tree.

    Attributes:
        node: all of it.
        subject: about what.
        classes: the classes that it names, or a table with classes as its keys.
        exact: whether the class itself is compared, and not its parents.
        is_table: whether the answer is what the table has for the class.
        is_typed: whether the subject is the layer, and not a class that may be any layer's.
    """

    node: ast.expr | ast.pattern
    subject: ast.expr
    classes: ast.expr
    exact: bool
    is_table: bool = False
    is_typed: bool = True


def _questions(node: ast.AST, assigned: Mapping[str, ast.expr]) -> Iterator[_Question]:
    """The questions that a node asks.

    1. isinstance(x, classes), issubclass(type(x), classes)
    2. type(x) is cls, type(x) in classes; not type(x).__name__, which stays the same
    3. table[type(x)], table.get(type(x))
    4. match x: case cls(): ...

    `x.__class__` means the same as `type(x)`, and so does a variable that has it. An unknown class may be any layer's.

    Args:
        assigned: local variable -> its value, of those that are assigned once.
    """
    if isinstance(node, ast.Call):
        yield from _questions_of_call(node, assigned)
    elif isinstance(node, ast.Compare) and len(node.comparators) == 1:
        sides = [node.left, node.comparators[0]]
        for side, other in (sides, sides[::-1]):
            subject = _typed(side, assigned)
            is_typed = subject is not None
            yield _Question(node, subject or side, other, exact=True, is_typed=is_typed)
    elif isinstance(node, ast.Subscript):
        subject = _typed(node.slice, assigned)
        if subject is not None:
            yield _Question(node, subject, node.value, exact=True, is_table=True)
    elif isinstance(node, ast.Match):
        for case in node.cases:
            for pattern in ast.walk(case.pattern):
                if isinstance(pattern, ast.MatchClass):
                    yield _Question(pattern, node.subject, pattern.cls, exact=False)


def _questions_of_call(node: ast.Call, assigned: Mapping[str, ast.expr]) -> Iterator[_Question]:
    called = node.func.id if isinstance(node.func, ast.Name) else ""
    if called == "isinstance" and len(node.args) == 2:
        yield _Question(node, node.args[0], node.args[1], exact=False)
    elif called == "issubclass" and len(node.args) == 2:
        subject = _typed(node.args[0], assigned)
        is_typed = subject is not None
        yield _Question(node, subject or node.args[0], node.args[1], exact=False, is_typed=is_typed)
    elif isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        subject = _typed(node.args[0], assigned)
        if subject is not None:
            yield _Question(node, subject, node.func.value, exact=True, is_table=True)


def _typed(node: ast.expr, assigned: Mapping[str, ast.expr]) -> ast.expr | None:
    """x of `type(x)` or `x.__class__`, or of a variable that has it."""
    if isinstance(node, ast.Name):
        node = assigned.get(node.id, node)
    if isinstance(node, ast.Attribute) and node.attr == "__class__":
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type":
        return node.args[0] if len(node.args) == 1 else None
    return None


def _attribute(value: Any, name: str) -> Any:
    """An attribute that can be read without running the model's code."""
    if isinstance(value, nn.Module):
        if name in value._modules:
            return value._modules[name]
        if name in vars(value):
            return vars(value)[name]
        static = inspect.getattr_static(type(value), name, UNKNOWN)
        return UNKNOWN if hasattr(static, "__get__") and not isinstance(static, type) else static
    if isinstance(value, (ModuleType, type)):
        return getattr(value, name, UNKNOWN)
    return UNKNOWN


def _item(value: Any, index: Any) -> Any:
    if not isinstance(value, (list, tuple, dict, nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        return UNKNOWN
    if not isinstance(index, (int, str)):
        return UNKNOWN
    try:
        return value[index]  # type: ignore[index]
    except (LookupError, TypeError):
        return UNKNOWN


def described(path: str) -> str:
    """A part of a model, in words."""
    return f"`{path}`" if path else "the model"


def qualified_name(cls: type) -> str:
    """Such as torch.nn.LSTM."""
    return f"{cls.__module__.removesuffix('.modules.rnn')}.{cls.__name__}"


def _answer(cls: type, classes: Any, exact: bool) -> bool:
    """Whether `cls` is among the classes, or one of them is it or its parent."""
    if isinstance(classes, UnionType):
        classes = classes.__args__
    if isinstance(classes, (tuple, list, set, frozenset, dict)):
        return any(_answer(cls, candidate, exact) for candidate in classes)
    if not isinstance(classes, type):
        return False
    return cls is classes if exact else issubclass(cls, classes)
