"""What each character of a Python file is, according to `tokenize`: the labels that the model learns."""

import io
import keyword
import tokenize
from collections.abc import Iterator

import numpy as np

LABELS = (
    "space",
    "operator",
    "name",
    "call",
    "definition",
    "keyword",
    "number",
    "string",
    "comment",
)
"""A name before "(" is a call, a name after `def` or `class` is a definition: context on both sides decides."""

_SPACE = LABELS.index("space")
_OPERATOR = LABELS.index("operator")
_FIXED = {
    tokenize.OP: "operator",
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.COMMENT: "comment",
}


def label(source: str) -> np.ndarray:
    """The index into `LABELS` of every character: uint8 (length,).

    Raises:
        tokenize.TokenError, SyntaxError: `source` is not Python.
    """
    # StringIO ends lines where tokenize does; str.splitlines would end more of them.
    line_starts = np.cumsum([0, *map(len, io.StringIO(source))])
    labels = np.where([character.isspace() for character in source], _SPACE, _OPERATOR).astype(
        np.uint8
    )
    for (start_row, start_column), (end_row, end_column), name in _spans(source):
        start = line_starts[start_row - 1] + start_column
        end = line_starts[end_row - 1] + end_column
        labels[start:end] = LABELS.index(name)
    return labels


def _spans(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:
    """Start and end (row from 1, column from 0) and label of every token that is not white space."""
    tokens = list(_merge_f_strings(tokenize.generate_tokens(io.StringIO(source).readline)))
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        if token.type == tokenize.NAME:
            yield token.start, token.end, _name_label(before, token, after)
        elif token.type in _FIXED:
            yield token.start, token.end, _FIXED[token.type]


def _name_label(
    before: tokenize.TokenInfo | None, token: tokenize.TokenInfo, after: tokenize.TokenInfo | None
) -> str:
    if keyword.iskeyword(token.string):
        return "keyword"
    if before is not None and before.string in ("def", "class"):
        return "definition"
    return "call" if after is not None and after.string == "(" else "name"


def _merge_f_strings(tokens: Iterator[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
    """Make each f-string one STRING, as it was before Python 3.12, where `tokenize` began to look inside."""
    start_type = getattr(tokenize, "FSTRING_START", None)
    end_type = getattr(tokenize, "FSTRING_END", None)
    open_starts: list[tokenize.TokenInfo] = []  # more than one if an f-string contains another
    for token in tokens:
        if token.type == start_type:
            open_starts.append(token)
        elif token.type == end_type:
            start = open_starts.pop()
            if not open_starts:
                yield tokenize.TokenInfo(tokenize.STRING, "", start.start, token.end, start.line)
        elif not open_starts:
            yield token
