"""What each character of a Python file is, according to `tokenize`: the labels that the model learns."""

import io
import keyword
import tokenize
from collections.abc import Iterator

import numpy as np

LABELS = ("space", "operator", "name", "call", "definition", "keyword", "number", "string", "comment")
"""A name before "(" is a call, a name after `def` or `class` a definition: context on either side decides."""

_SPACE, _OPERATOR = LABELS.index("space"), LABELS.index("operator")
_FIXED = {tokenize.OP: "operator", tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment"}


def label(source: str) -> np.ndarray:
    """The index into `LABELS` of every character: uint8 (length,).

    Raises:
        tokenize.TokenError, SyntaxError: `source` is not Python.
    """
    starts = np.cumsum([0, *map(len, io.StringIO(source))])  # lines as tokenize counts them
    labels = np.where([character.isspace() for character in source], _SPACE, _OPERATOR).astype(np.uint8)
    for (start_row, start), (end_row, end), kind in _spans(source):
        covered = slice(starts[start_row - 1] + start, starts[end_row - 1] + end)
        labels[covered] = LABELS.index(kind)
    return labels


def _spans(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:
    """Start and end (row from 1, column from 0) and label of every token that is not white space."""
    tokens = list(_merged(tokenize.generate_tokens(io.StringIO(source).readline)))
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        if token.type == tokenize.NAME:
            yield token.start, token.end, _name(before, token, after)
        elif token.type in _FIXED:
            yield token.start, token.end, _FIXED[token.type]


def _name(before: tokenize.TokenInfo | None, token: tokenize.TokenInfo, after: tokenize.TokenInfo | None) -> str:
    if keyword.iskeyword(token.string):
        return "keyword"
    if before is not None and before.string in ("def", "class"):
        return "definition"
    return "call" if after is not None and after.string == "(" else "name"


def _merged(tokens: Iterator[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
    """An f-string as one STRING, as before Python 3.12, whose `tokenize` looks inside it."""
    start_type, end_type = getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None)
    opened: list[tokenize.TokenInfo] = []
    for token in tokens:
        if token.type == start_type:
            opened.append(token)
        elif token.type == end_type:
            first = opened.pop()
            if not opened:
                yield tokenize.TokenInfo(tokenize.STRING, "", first.start, token.end, first.line)
        elif not opened:
            yield token
