"""JSON lines: a row is an object on a line, keyed by input names; its answer one keyed by output names."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from deploy_rnn.json_fields import shown

from .answers import Answer, OutputFormat
from .rows import WINDOW_BYTES, Outputs, Reader, Row, Source, Span

# An extra has it; without it, the slower one of the standard library is used.
try:
    import orjson
except ModuleNotFoundError:
    orjson = None  # type: ignore[assignment]

MOST_LINE_BYTES = 256 << 20
"""A line that is longer is not a row: it would be a file without ends of lines."""

_JSON_TYPES = (str, int, float, bool, list, dict, type(None))

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COPY_BYTES = 1 << 20


class JsonLines(Source):
    """A file of JSON lines. Lines with nothing on them are not rows.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.reader = LineReader()
        self._path = path
        self._file: BinaryIO | None = None

    @property
    def size(self) -> int | None:
        return self._path.stat().st_size

    def about_rows(self) -> int:
        """As many as there would be if all lines were as long as the first ones."""
        with self._path.open("rb") as file:
            beginning = file.read(_COPY_BYTES)
        if not beginning:
            return 0
        return self._path.stat().st_size * max(1, beginning.count(b"\n")) // len(beginning)

    def columns(self) -> None:
        pass

    def spans(self, most_rows: int, done: Mapping[int, int]) -> Iterator[Span]:
        with self._path.open("rb") as file:
            for span, _ in _windows(file, most_rows):
                if span.first not in done:
                    yield span

    def fetch(self, span: Span) -> bytes:
        if self._file is None:
            self._file = self._path.open("rb")
        self._file.seek(span.start)
        # Of a line that is too long, its last, so much is enough to know it.
        return self._file.read(min(span.size, WINDOW_BYTES + MOST_LINE_BYTES + 1))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class JsonLinesStream(Source):
    """JSON lines that can be read once only, as from a pipe."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self.reader = LineReader()
        self._file = file
        self._windows: dict[int, bytes] = {}

    @property
    def size(self) -> int | None:
        return None

    def about_rows(self) -> None:
        pass

    def columns(self) -> None:
        pass

    def spans(self, most_rows: int, done: Mapping[int, int]) -> Iterator[Span]:
        for span, lines in _windows(self._file, most_rows, keep=True):
            self._windows[span.first] = lines
            yield span

    def fetch(self, span: Span) -> bytes:
        return self._windows.pop(span.first)

    def close(self) -> None:
        """The file is that of the one who gave it."""


def _windows(file: BinaryIO, most_rows: int, *, keep: bool = False) -> Iterator[tuple[Span, bytes]]:
    """Divide lines into windows.

    Args:
        keep: whether the lines themselves are wanted, too.
    """
    first = rows = start = size = 0
    line_number = first_line = 1
    lines: list[bytes] = []
    while line := file.readline(MOST_LINE_BYTES + 1):
        size += len(line)
        if keep:
            lines.append(line)
        is_whole = line.endswith(b"\n")
        while not is_whole:
            rest = file.readline(MOST_LINE_BYTES)
            size += len(rest)
            is_whole = not rest or rest.endswith(b"\n")
        line_number += 1
        rows += not line.isspace()
        if rows == most_rows or size >= WINDOW_BYTES:
            if rows:
                yield Span(first, rows, start, size, first_line), b"".join(lines)
            first, rows, start, size = first + rows, 0, start + size, 0
            first_line = line_number
            lines = []
    if rows:
        yield Span(first, rows, start, size, first_line), b"".join(lines)


class LineReader(Reader):
    """Makes rows of lines."""

    def rows(self, span: Span, payload: bytes) -> list[Row]:
        if span.line == 1:
            payload = payload.removeprefix(_BYTE_ORDER_MARK)
        rows = []
        for line_number, line in enumerate(payload.split(b"\n"), span.line):
            if line and not line.isspace():
                rows.append(_parse(line, line_number))
        return rows


def _parse(line: bytes, number: int) -> Row:
    if len(line) > MOST_LINE_BYTES:
        return Row(line=number, fault=f"the line is longer than {MOST_LINE_BYTES:,} bytes.")
    try:
        values = _loads(line)
    except (ValueError, RecursionError) as error:
        return Row(line=number, fault=f"the line is not JSON: {_what_is_wrong(error)}.")
    if not isinstance(values, dict):
        return Row(
            line=number,
            fault=f"the line must be an object keyed by input names, got {shown(values)}.",
        )
    return Row(values, number)


def _what_is_wrong(error: Exception) -> str:
    # Its own text has the line, too, which is always the first.
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, at character {error.pos + 1}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


class JsonLinesAnswers(OutputFormat):
    """An object on a line for each row, keyed by output names; an empty one for a row without an answer."""

    name = "jsonl"
    suffix = ".jsonl"

    def refusal(self, outputs: Outputs) -> str | None:
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return f"output `{name}` contains NaN or infinity, which JSON cannot represent; write another format."
        return None

    def encode(self, answers: Sequence[Answer]) -> bytes:
        lines = [_dumps({**answer.kept, **(answer.outputs or {})}) for answer in answers]
        return b"".join(lines)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        with target.open("wb") as whole:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole, _COPY_BYTES)


def _loads(line: bytes) -> Any:
    if orjson is not None:
        return orjson.loads(line)
    return json.loads(line, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _dumps(values: Mapping[str, Any]) -> bytes:
    if orjson is not None:
        # An array of no axes is written as its number.
        plain = {name: value[()] if _is_number(value) else value for name, value in values.items()}
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        return orjson.dumps(plain, option=options, default=_to_list)
    lists = {name: _to_list(value) for name, value in values.items()}
    return json.dumps(lists, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 0


def _to_list(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)):
        return value if isinstance(value, _JSON_TYPES) else str(value)
    if value.dtype.kind == "f" and value.itemsize < 8:
        # As few digits as tell its value, and not those of the same value in float64.
        value = np.asarray(value).astype(str).astype(np.float64)
    return value.tolist()
