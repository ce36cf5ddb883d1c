"""Which file format an input or output has: by the end of its name, or as it is told."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError

from .answers import OutputFormat
from .json_lines import JsonLines, JsonLinesAnswers, JsonLinesStream
from .npz import Npz, NpzAnswers
from .rows import Source

COLUMNAR = ("parquet", "arrow")

STANDARD = "-"
"""Instead of a path: stdin or stdout."""

FORMATS = ("jsonl", "npz", "parquet", "arrow")

_BY_SUFFIX = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".npz": "npz", ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".arrows": "arrow", ".ipc": "arrow", ".feather": "arrow",
}  # fmt: skip


def format_of(path: str, given: str | None) -> str:
    """The name of a format.

    Raises:
        ValueError: not a format; or none is given, and the name of the file does not tell.
    """
    if given is not None:
        if given not in FORMATS:
            raise ValueError(
                f"the format {given!r} is unknown; must be one of {', '.join(FORMATS)}."
            )
        return given
    if path == STANDARD:
        return "jsonl"
    suffix = Path(path).suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise ValueError(
            f"the name {path!r} does not tell the format; give one of {', '.join(FORMATS)}, or a name that ends in one "
            f"of {', '.join(_BY_SUFFIX)}."
        )
    return _BY_SUFFIX[suffix]


def open_source(path: str, given: str | None) -> Source:
    """Open an input.

    Raises:
        FileNotFoundError, IsADirectoryError: it is not a file.
        ValueError: as for `format_of`.
        InputError: it is not of that format.
    """
    if path == STANDARD:
        if format_of(path, given) != "jsonl":
            raise InputError(f"only JSON lines are read from stdin, and not {given}.")
        return JsonLinesStream("stdin", sys.stdin.buffer)
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(f"{path!r} is a folder; give a file.")
    if not file.exists():
        raise FileNotFoundError(f"{path!r} does not exist.")
    name = format_of(path, given)
    if name in COLUMNAR:
        source: Source = _arrow(path).ArrowSource(file, name)
        return source
    if name == "npz":
        return Npz(file)
    if not file.is_file():
        return JsonLinesStream(path, file.open("rb"))  # a pipe
    return JsonLines(file)


def answers_format(
    path: str, given: str | None, outputs: Sequence[Tensor], source: Source, kept: Sequence[str]
) -> OutputFormat:
    """How answers are written.

    Args:
        outputs: those of a row.
        source: of the rows.
        kept: the names of what is copied from a row to its answer.

    Raises:
        ValueError: as for `format_of`.
        InputError: the format cannot have such outputs, or what is to be kept.
    """
    name = format_of(path, given)
    if name in COLUMNAR:
        schema = getattr(source, "schema", None)
        if kept and schema is None:
            raise InputError(
                f"`keep` copies columns to {name} from Parquet and Arrow, which have their types, and not from "
                f"{source.name!r}; write JSON lines."
            )
        columns = [schema.field(key) for key in kept] if schema is not None else []
        answers: OutputFormat = _arrow(path).ArrowAnswers(name, outputs, columns)
        return answers
    if name == "npz":
        if kept:
            raise InputError("`keep` copies nothing to .npz; the rows have the same order there.")
        return NpzAnswers(outputs)
    return JsonLinesAnswers()


def _arrow(path: str) -> Any:
    """The module for these formats. Raises: InputError: what it needs is not installed."""
    try:
        from . import arrow
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path!r} needs `{error.name}`; run: pip install 'deploy-rnn[score]'"
        ) from None
    return arrow
