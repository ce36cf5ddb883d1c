"""What a file requires of the sizes of its inputs, as C++, and which of a graph's conditions it has to require."""

import ast
from collections.abc import Mapping, Sequence

from deploy_rnn.checking.branches import Condition
from deploy_rnn.errors import ExportError

MESSAGE = "the sizes must be such that {condition}; the model refuses others, or goes another way."

_OPERATORS: Mapping[type[ast.AST], str] = {
    ast.Add: "({0} + {1})",
    ast.Sub: "({0} - {1})",
    ast.Mult: "({0} * {1})",
    ast.FloorDiv: "floor_quotient({0}, {1})",
    ast.Mod: "({0} - {1} * floor_quotient({0}, {1}))",
    ast.Eq: "({0} == {1})",
    ast.NotEq: "({0} != {1})",
    ast.Lt: "({0} < {1})",
    ast.LtE: "({0} <= {1})",
    ast.Gt: "({0} > {1})",
    ast.GtE: "({0} >= {1})",
    ast.And: "({0} && {1})",
    ast.Or: "({0} || {1})",
    ast.Not: "(!{0})",
    ast.USub: "(-{0})",
}

_FUNCTIONS = {"max": "std::max<int64_t>({0}, {1})", "min": "std::min<int64_t>({0}, {1})"}

CPP_FUNCTION = """
inline int64_t floor_quotient(int64_t number, int64_t divisor) {
  if (divisor == 0) return 0;
  const int64_t quotient = number / divisor;
  return quotient - (number % divisor != 0 && (number < 0) != (divisor < 0));
}"""
"""As `//` of Python; what is divided by 0 makes no sense, and is refused by another condition."""


def cpp_checks(conditions: Sequence[Condition], sizes: Mapping[str, str]) -> str:
    """C++ statements that refuse sizes without the conditions; `sizes`: name of each axis -> its size in C++.

    Raises:
        ExportError: a condition that cannot be written so.
    """
    statements = []
    for condition in conditions:
        text = str(condition)
        message = MESSAGE.format(condition=text)
        expression = _cpp(ast.parse(text, mode="eval").body, sizes, text)
        statements.append(f'if (!{expression}) throw std::runtime_error("{message}");')
    return "\n    ".join(statements)


def _cpp(node: ast.AST, sizes: Mapping[str, str], text: str) -> str:
    """A part of a condition, as C++."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return str(node.value)
    if isinstance(node, ast.Name) and node.id in sizes:
        return sizes[node.id]
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
    ):
        return _joined(_FUNCTIONS[node.func.id], node.args, sizes, text)
    if isinstance(node, ast.BoolOp):
        return _joined(_operator(node.op, text), node.values, sizes, text)
    if isinstance(node, ast.BinOp):
        return _joined(_operator(node.op, text), [node.left, node.right], sizes, text)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _joined(_operator(node.ops[0], text), [node.left, *node.comparators], sizes, text)
    if isinstance(node, ast.UnaryOp):
        return _operator(node.op, text).format(_cpp(node.operand, sizes, text))
    raise _unknown(text)


def _joined(template: str, parts: Sequence[ast.AST], sizes: Mapping[str, str], text: str) -> str:
    """Several parts with an operator between two each."""
    first, *others = [_cpp(part, sizes, text) for part in parts]
    for other in others:
        first = template.format(first, other)
    return first


def _operator(node: ast.AST, text: str) -> str:
    template = _OPERATORS.get(type(node))
    if template is None:
        raise _unknown(text)
    return template


def _unknown(text: str) -> ExportError:
    return ExportError(
        f"the model branches on its sizes, and holds only where {text}, which a file cannot check; leave an axis out "
        "of `dynamic_shapes`."
    )
