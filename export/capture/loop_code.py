"""Methods made again, in which a loop of Python calls a function: the loop of `walk`."""

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from .walking import WALKED, LoopNames, walk

Place = tuple[str, int]
"""A file, and the number of a line."""

SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LEAVING = (ast.Return, ast.Break, ast.Continue, ast.Yield, ast.YieldFrom, ast.Await)


def keep_loops(model: nn.Module, places: Collection[Place]) -> bool:
    """Let the methods of `model` with a loop in one of these places call `walk` there, in place.

    Returns:
        Whether there was one: a function that is no method is left alone, and so is a loop that is left early.
    """
    found = False
    for module in model.modules():
        for name, function in _methods(type(module)).items():
            lines = {
                number for file, number in places if _contains(function.__code__, file, number)
            }
            renewed = _with_walks(function, lines) if lines else None
            if renewed is not None:
                vars(module)[name] = MethodType(renewed, module)
                found = True
    return found


def _methods(cls: type) -> dict[str, FunctionType]:
    """What the methods of an object mean, by name."""
    members: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        members |= vars(owner)
    return {name: value for name, value in members.items() if isinstance(value, FunctionType)}


def _contains(code: CodeType, file: str, number: int) -> bool:
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return code.co_filename == file and min(lines) <= number <= max(lines)


def _with_walks(function: FunctionType, lines: Collection[int]) -> FunctionType | None:
    """The function with these loops changed; None if there is no source, or nothing that can be changed."""
    try:
        source, first_line = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(source)))
    except (OSError, SyntaxError, TypeError):
        return None
    ast.increment_lineno(tree, first_line - 1)
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef) or _has_private_names(definition):
        return None
    definition.decorator_list = []
    change = _Walks(definition, lines)
    change.visit(definition)
    if not change.number:
        return None
    return _compiled(definition, function)


def _has_private_names(definition: ast.FunctionDef) -> bool:
    """Whether a name such as `self.__x` is there, which means another one in the body of a class."""
    names = [node.attr for node in ast.walk(definition) if isinstance(node, ast.Attribute)]
    return any(name.startswith("__") and not name.endswith("__") for name in names)


def _compiled(definition: ast.FunctionDef, function: FunctionType) -> FunctionType:
    """A function of this code with the globals, the closure and the defaults of another."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    factory = ast.parse(f"def factory({', '.join([*cells, *WALKED, 'walk'])}):\n  pass").body[0]
    assert isinstance(factory, ast.FunctionDef)
    definition.args.defaults = [ast.Constant(None) for _ in definition.args.defaults]
    definition.args.kw_defaults = [
        default and ast.Constant(None) for default in definition.args.kw_defaults
    ]
    factory.body = [definition]
    module = ast.fix_missing_locations(ast.Module([factory], []))
    compiled = compile(module, function.__code__.co_filename, "exec", dont_inherit=True)
    code = _inner(_inner(compiled, "factory"), definition.name)
    helpers = {name: _cell(value) for name, value in {**WALKED, "walk": walk}.items()}
    closure = tuple({**cells, **helpers}[name] for name in code.co_freevars)
    renewed = FunctionType(code, function.__globals__, function.__name__, closure=closure)
    renewed.__defaults__ = function.__defaults__
    renewed.__kwdefaults__ = function.__kwdefaults__
    return renewed


def _cell(value: Any) -> Any:
    return (lambda: value).__closure__[0]  # type: ignore[index]


def _inner(code: CodeType, name: str) -> CodeType:
    codes = [value for value in code.co_consts if isinstance(value, CodeType)]
    return next(inner for inner in codes if inner.co_name == name)


class _Walks(ast.NodeTransformer):
    """Changes the loops of a function that begin in `lines`, and counts them.

        for ITEM in STEPS:          def body(item, a, b):
            BODY                        ITEM = item
                            ->          BODY
                                        return a, b
                                    a, b = walk(STEPS, body, locals(), ...)

    a and b are the names that BODY assigns, and the lists that it appends to.
    """

    def __init__(self, definition: ast.FunctionDef, lines: Collection[int]) -> None:
        self.number = 0
        self._definition = definition
        self._lines = lines

    def visit_For(self, node: ast.For) -> Any:
        leaves_early = any(isinstance(part, LEAVING) for part in _own_parts(node.body))
        if node.lineno not in self._lines or node.orelse or leaves_early:
            return self.generic_visit(node)
        targets = {part.id for part in ast.walk(node.target) if isinstance(part, ast.Name)}
        flow = _Flow(targets)
        flow.read_all(node.body)
        appended = _appended_names(node.body)
        names = sorted((flow.assigned - targets) | (appended & flow.read_first))
        loop_names = LoopNames(
            tuple(names),
            tuple(name for name in names if name in appended and name in flow.read_first),
            tuple(name for name in names if name in flow.read_first),
            tuple(name for name in names if name in self._names_outside(node)),
        )
        self.number += 1
        return _as_walk(node, loop_names, self.number)

    def _names_outside(self, loop: ast.For) -> set[str]:
        """The names that the function reads outside of the body of a loop."""
        inside = {id(part) for statement in loop.body for part in ast.walk(statement)}
        return {
            part.id
            for part in ast.walk(self._definition)
            if isinstance(part, ast.Name)
            and isinstance(part.ctx, ast.Load)
            and id(part) not in inside
        }


def _as_walk(node: ast.For, names: LoopNames, number: int) -> list[ast.stmt]:
    body_name = f"body_of_loop_{number}"
    values = ", ".join(names.all)
    tuple_of_values = f"({values},)" if values else "()"
    call = f"walk(None, {body_name}, locals(), {tuple(names)!r})"
    code = (
        f"def {body_name}(item_of_loop, {values}):\n  return {tuple_of_values}\n"
        f"{f'{tuple_of_values} = ' if values else ''}{call}"
    )
    function, statement = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    assert isinstance(statement, (ast.Assign, ast.Expr))
    assert isinstance(statement.value, ast.Call)
    item = ast.Name("item_of_loop", ast.Load())
    body = [_WalkedSlices().visit(part) for part in node.body]
    function.body = [ast.Assign([node.target], item), *body, *function.body]
    statement.value.args[0] = _WalkedNames().visit(node.iter)
    for part in (function, statement):
        for inner in ast.walk(part):
            if not hasattr(inner, "lineno") or inner.lineno < node.lineno:
                ast.copy_location(inner, node)
    return [function, statement]


class _WalkedNames(ast.NodeTransformer):
    """Lets `range`, `enumerate` and their like mean those that take an unknown number of steps."""

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and f"walked_{node.func.id}" in WALKED:
            node.func.id = f"walked_{node.func.id}"
        return node


class _WalkedSlices(ast.NodeTransformer):
    """Lets `x[:, t : t + 1]` mean the places from `t` on, of which there are as many as the code says.

    Next to anything but slices, such places would be arranged in another way.
    """

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        self.generic_visit(node)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        windows = [part for part in parts if isinstance(part, ast.Slice) and _width(part)]
        others = [part for part in parts if not isinstance(part, ast.Slice)]
        if len(windows) != 1 or not all(map(_is_plain, others)) or _is_stored(node):
            return node
        (window,) = windows
        assert window.lower is not None
        call = ast.Call(
            ast.Name("walked_slice", ast.Load()),
            [window.lower, ast.Constant(_width(window))],
            [],
        )
        new_parts = [call if part is window else part for part in parts]
        node.slice = ast.Tuple(new_parts, ast.Load()) if len(new_parts) > 1 else call
        return node


def _width(part: ast.Slice) -> int:
    """The number of places in `t : t + 1`; 0 for another slice."""
    upper = part.upper
    if part.lower is None or part.step is not None or not isinstance(upper, ast.BinOp):
        return 0
    is_sum = isinstance(upper.op, ast.Add) and ast.dump(upper.left) == ast.dump(part.lower)
    number = upper.right.value if isinstance(upper.right, ast.Constant) else None
    return number if is_sum and type(number) is int and number > 0 else 0


def _is_plain(part: ast.expr) -> bool:
    """Whether a part of an index is `...`."""
    return isinstance(part, ast.Constant) and part.value is Ellipsis


def _is_stored(node: ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Store)


def _own_parts(statements: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    """What statements are made of, without functions within them and the loops of their own."""
    waiting: list[ast.AST] = [*statements]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, SCOPES):
            continue
        if isinstance(part, (ast.For, ast.While)):
            inner = [piece for piece in _own_parts(part.body) if isinstance(piece, ast.Return)]
            waiting += inner
            continue
        waiting += ast.iter_child_nodes(part)


def _appended_names(statements: Sequence[ast.stmt]) -> set[str]:
    """The lists `x` of `x.append(...)` and of `x += ...`."""
    names = set()
    for statement in statements:
        for part in ast.walk(statement):
            if isinstance(part, ast.Attribute) and part.attr == "append":
                target: ast.expr = part.value
            elif isinstance(part, ast.AugAssign):
                target = part.target
            else:
                continue
            if isinstance(target, ast.Name):
                names.add(target.id)
    return names


@dataclass
class _Flow:
    """Which names a step assigns, and which of them it reads before, as it gets them from the step before.

    Attributes:
        known: names that have a value of this step for certain.
    """

    known: set[str]

    def __post_init__(self) -> None:
        self.known = set(self.known)
        self.assigned: set[str] = set()
        self.read_first: set[str] = set()

    def read_all(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self._read(statement)

    def _read(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.If):
            self._read_names(statement.test)
            before = set(self.known)
            self.read_all(statement.body)
            after_body = self.known
            self.known = before
            self.read_all(statement.orelse)
            self.known &= after_body
            return
        blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        if isinstance(statement, SCOPES) or not any(blocks):
            self._read_names(statement)
            self.known |= _stored_names(statement)
            return
        # A loop may have no step, and what is tried may stop.
        before = set(self.known)
        self._read_names(statement)
        self.known = before

    def _read_names(self, node: ast.AST) -> None:
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            self._note_read(node.target.id)
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                self._note_read(part.id)
            if isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Name):
                self._note_read(part.target.id)
        self.assigned |= _stored_names(node)

    def _note_read(self, name: str) -> None:
        if name not in self.known:
            self.read_first.add(name)


def _stored_names(node: ast.AST) -> set[str]:
    """The names that a statement assigns in the function itself."""
    if isinstance(node, SCOPES):
        return {node.name} if not isinstance(node, ast.Lambda) else set()
    if isinstance(node, COMPREHENSIONS):
        return set()
    names = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    for child in ast.iter_child_nodes(node):
        names |= _stored_names(child)
    return names
