"""How dense the code is: `python tools/density.py deploy_rnn export serving` prints one row for each folder.

A mirror, not a gate: no test asserts these figures, and nothing is written for their sake.

nodes       syntax nodes for each line of code (lines without blanks, comments and docstrings)
body p90    lines of a function's body that nine functions in ten do not exceed
words       share of names that are function words (`each`, `found`, ...) instead of nouns that say what they hold
parallel    share of assignments that set several names to unrelated values at once
nested      comprehensions within comprehensions, per 100 lines of code
comments    comments, per 100 lines of code
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

FUNCTION_WORDS = {
    "each", "found", "given", "asked", "at", "kind", "said", "made", "known", "named", "apart", "taken", "told",
}  # fmt: skip
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (ast.Module, ast.ClassDef, *FUNCTIONS)
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
FORMATS = {
    "nodes": ".1f",
    "body p90": "d",
    "words": ".1%",
    "parallel": ".1%",
    "nested": ".2f",
    "comments": ".1f",
}


def density(folder: Path) -> dict[str, float]:
    """The figures of all Python files below `folder`."""
    counts: Counter[str] = Counter()
    bodies: list[int] = []
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        counts += count(source)
        bodies += body_lengths(ast.parse(source))
    bodies.sort()
    lines = counts["lines"]
    return {
        "nodes": counts["nodes"] / lines,
        "body p90": bodies[int(0.9 * (len(bodies) - 1))],
        "words": counts["function words"] / counts["names"],
        "parallel": counts["parallel"] / counts["assignments"],
        "nested": 100 * counts["nested"] / lines,
        "comments": 100 * counts["comments"] / lines,
    }


def count(source: str) -> Counter[str]:
    tree = ast.parse(source)
    remove_docstrings(tree)
    counts: Counter[str] = Counter()
    for node in ast.walk(tree):
        counts["nodes"] += 1
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            counts["names"] += 1
            counts["function words"] += node.id in FUNCTION_WORDS
        if isinstance(node, ast.Assign):
            counts["assignments"] += 1
            counts["parallel"] += is_parallel(node)
        if isinstance(node, COMPREHENSIONS):
            counts["nested"] += contains_comprehension(node)
    code_lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            counts["comments"] += is_remark(token.string)
        elif token.type not in LAYOUT:
            code_lines |= set(range(token.start[0], token.end[0] + 1))
    counts["lines"] = len(code_lines - docstring_lines(ast.parse(source)))
    return counts


def is_remark(comment: str) -> bool:
    """Whether a comment is for the reader, not for a tool."""
    return not comment.lstrip("# ").startswith(("noqa", "type:", "fmt:"))


def is_parallel(node: ast.Assign) -> bool:
    """`a, b = 1, 2`, but not `a, b = f()`, nor a swap."""
    target = node.targets[0]
    if not (isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)):
        return False
    return {ast.unparse(item) for item in target.elts} != {
        ast.unparse(item) for item in node.value.elts
    }


def contains_comprehension(node: ast.AST) -> bool:
    return any(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node) if inner is not node)


def docstrings(tree: ast.AST) -> list[ast.Expr]:
    """Docstrings of modules, classes and functions, and of attributes: every string that is a statement."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def docstring_lines(tree: ast.AST) -> set[int]:
    return {
        line
        for node in docstrings(tree)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def remove_docstrings(tree: ast.AST) -> None:
    gone = set(map(id, docstrings(tree)))
    for node in ast.walk(tree):
        if isinstance(node, SCOPES):
            node.body = [statement for statement in node.body if id(statement) not in gone]


def body_lengths(tree: ast.Module) -> list[int]:
    """Lines of code from the first statement after the docstring to the last, for each function."""
    lengths = []
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            last = body[-1].end_lineno or body[-1].lineno if body else 0
            lengths.append(last - body[0].lineno + 1 if body else 0)
    return lengths


def main() -> None:
    folders = sys.argv[1:] or ["deploy_rnn", "export", "serving"]
    print(f"{'':12}" + "".join(f"{name:>12}" for name in FORMATS))
    for folder in folders:
        figures = density(Path(folder))
        row = [format(figures[name], pattern) for name, pattern in FORMATS.items()]
        print(f"{folder:12}" + "".join(f"{figure:>12}" for figure in row))


if __name__ == "__main__":
    main()
