"""npz: the rows of an input in one array, along its first axis, or end to end; the answers likewise.

`x` alone has a row for each index of its first axis. With `x.offsets` (N + 1 whole numbers), the rows lie end to end
along the first axis, and row i is `x[offsets[i]:offsets[i + 1]]`. With `x.shapes` (N, axes) too, a row has that shape.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError
from deploy_rnn.tensor_spec import ANY_SHAPE

from .answers import Answer, OutputFormat
from .rows import WINDOW_BYTES, Columns, Outputs, Reader, Row, Source, Span

OFFSETS = ".offsets"
SHAPES = ".shapes"
ANSWERED = "answered"
"""The array of an output that says which rows have an answer."""

_COPY_BYTES = 1 << 20

# NotImplementedError, of an unknown compression, and RecursionError are RuntimeErrors; so is what a password needs.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, SyntaxError, TokenError)  # fmt: skip
"""What `zipfile` and `numpy` raise of files that are damaged, or not what they are called."""


class Npz(Source):
    """An .npz file, whose arrays are read piece by piece.

    Args:
        path: of the file.

    Raises:
        InputError: it is not such a file, or its arrays are not rows.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.reader = NpzReader()
        with _damage_told(self.name):
            self._columns = _columns(_members(path), self.name)
        self.rows = _row_count(self._columns, self.name)

    @property
    def size(self) -> int | None:
        return self.rows

    def about_rows(self) -> int:
        return self.rows

    def columns(self) -> Columns:
        return {name: column.values.dtype for name, column in self._columns.items()}

    def spans(self, most_rows: int, done: Mapping[int, int]) -> Iterator[Span]:
        first = 0
        while first < self.rows:
            count = min(most_rows, self.rows - first)
            while count > 1 and self._bytes(first, count) > WINDOW_BYTES:
                count = (count + 1) // 2
            if first not in done:
                yield Span(first, count, first, count)
            first += count

    def fetch(self, span: Span) -> "dict[str, Slice]":
        stop = span.first + span.rows
        with _damage_told(self.name):
            return {name: column.slice(span.first, stop) for name, column in self._columns.items()}

    def close(self) -> None:
        for column in self._columns.values():
            column.values.close()

    def _bytes(self, first: int, count: int) -> int:
        return sum(column.bytes(first, first + count) for column in self._columns.values())


class Slice(NamedTuple):
    """Some rows of a column.

    Attributes:
        values: of these rows only.
        offsets: where each begins and the last one ends in `values`; None if each is one index.
        shapes: of each; None if it is that of `values`.
    """

    values: np.ndarray
    offsets: np.ndarray | None
    shapes: np.ndarray | None

    def row(self, index: int) -> np.ndarray:
        if self.offsets is None:
            return np.asarray(self.values[index])
        array = self.values[self.offsets[index] : self.offsets[index + 1]]
        return array if self.shapes is None else array.reshape(self.shapes[index])


class NpzReader(Reader):
    """Makes rows of slices."""

    def rows(self, span: Span, payload: Mapping[str, Slice]) -> list[Row]:
        rows = []
        for index in range(span.rows):
            rows.append(Row({name: values.row(index) for name, values in payload.items()}))
        return rows


@dataclass
class _Column:
    """A column of the input."""

    values: "_Member"
    offsets: np.ndarray | None = None
    shapes: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return self.values.shape[0] if self.offsets is None else len(self.offsets) - 1

    def bytes(self, first: int, stop: int) -> int:
        if self.offsets is not None:
            first, stop = int(self.offsets[first]), int(self.offsets[stop])
        return (stop - first) * self.values.item_bytes

    def slice(self, first: int, stop: int) -> Slice:
        if self.offsets is None:
            return Slice(self.values.read(first, stop), None, None)
        offsets = self.offsets[first : stop + 1]
        values = self.values.read(int(offsets[0]), int(offsets[-1]))
        shapes = None if self.shapes is None else self.shapes[first:stop]
        return Slice(values, offsets - offsets[0], shapes)


class _Member:
    """An array in an .npz file, read along its first axis, best in rising order."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._archive: zipfile.ZipFile | None = None
        self._file: Any = None
        self._position = 0
        self._whole: np.ndarray | None = None
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            self.shape, self._is_fortran, self.dtype = _read_header(file)
            value_bytes = archive.getinfo(name).file_size - file.tell()
        # Of an item of the first axis.
        self.item_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        # Of Python objects, which are refused, it is another number.
        needed = prod(self.shape) * self.dtype.itemsize
        if min(self.shape, default=0) < 0 or (value_bytes != needed and not self.dtype.hasobject):
            raise ValueError(
                f"{name!r} has {value_bytes:,} bytes of values; its shape {list(self.shape)} needs {needed:,}"
            )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the items from `start` to before `stop`."""
        if self._is_fortran and len(self.shape) > 1:
            return self.whole()[start:stop]
        if self._file is None or start < self._position:
            self.close()
            self._archive = zipfile.ZipFile(self._path)
            self._file = self._archive.open(self._name)
            _read_header(self._file)
            self._position = 0
        _skip(self._file, (start - self._position) * self.item_bytes)
        needed = (stop - start) * self.item_bytes
        data = self._file.read(needed)
        if len(data) < needed:
            raise EOFError(f"{self._name!r} ends too early")
        self._position = stop
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def whole(self) -> np.ndarray:
        """Return all of it; it stays in memory."""
        if self._whole is None:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._name) as file:
                self._whole = np.lib.format.read_array(file, allow_pickle=False)
        return self._whole

    def close(self) -> None:
        if self._archive is not None:
            self._file.close()
            self._archive.close()
            self._file = self._archive = None


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _skip(file: BinaryIO, count: int) -> None:
    while count:
        skipped = len(file.read(min(count, _COPY_BYTES)))
        if not skipped:
            raise EOFError("an array ends too early")
        count -= skipped


@contextmanager
def _damage_told(file: str) -> Iterator[None]:
    """Raises: InputError: a file is damaged, or not an .npz file; with its name."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{file!r} is not an .npz file: {error}.") from None


def _members(path: Path) -> dict[str, _Member]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
    return {name.removesuffix(".npy"): _Member(path, name) for name in names}


def _columns(members: Mapping[str, _Member], file: str) -> dict[str, _Column]:
    columns = {}
    for name, member in members.items():
        owner = name.removesuffix(OFFSETS).removesuffix(SHAPES)
        if owner != name and owner in members:
            continue
        if member.dtype.hasobject:
            raise InputError(
                f"`{name}` in {file!r} holds Python objects, which are not read: put the rows end to end, and where "
                f"each begins into `{name}{OFFSETS}`."
            )
        if not member.shape:
            raise InputError(
                f"`{name}` in {file!r} has no axes; its first axis must be that of the rows."
            )
        column = _Column(member)
        if name + OFFSETS in members:
            column.offsets = _checked_offsets(members[name + OFFSETS].whole(), member, name)
        if name + SHAPES in members:
            column.shapes = _checked_shapes(members[name + SHAPES].whole(), column, name)
        columns[name] = column
    return columns


def _checked_offsets(offsets: np.ndarray, values: _Member, name: str) -> np.ndarray:
    is_right = offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) > 0
    if is_right:
        offsets = offsets.astype(np.int64)
        is_right = offsets[0] == 0 and offsets[-1] == values.shape[0]
        is_right = is_right and bool((np.diff(offsets) >= 0).all())
    if not is_right:
        raise InputError(
            f"`{name}{OFFSETS}` must be whole numbers that rise from 0 to {values.shape[0]}, the size of `{name}`."
        )
    return offsets


def _checked_shapes(shapes: np.ndarray, column: _Column, name: str) -> np.ndarray:
    offsets = column.offsets
    is_right = offsets is not None and shapes.ndim == 2 and shapes.dtype.kind in "iu"
    if offsets is not None and is_right:
        # As floats: the product of integers that are too large may be any number, also the right one.
        counts = np.prod(shapes, axis=1, dtype=np.float64)
        is_right = bool((shapes >= 0).all()) and np.array_equal(counts, np.diff(offsets))
    if not is_right:
        raise InputError(
            f"`{name}{SHAPES}` must be the shape of each row, [rows, axes], of as many values as by `{name}{OFFSETS}`."
        )
    return shapes


def _row_count(columns: Mapping[str, _Column], file: str) -> int:
    counts = {name: column.rows for name, column in columns.items()}
    if not counts:
        raise InputError(f"{file!r} has no arrays.")
    if len(set(counts.values())) > 1:
        sizes = ", ".join(f"{count} of `{name}`" for name, count in counts.items())
        raise InputError(
            f"{file!r} has different numbers of rows: {sizes}. Rows of different length lie end to end; "
            f"`NAME{OFFSETS}` has where each begins."
        )
    return next(iter(counts.values()))


class NpzAnswers(OutputFormat):
    """An array for each output, laid out as inputs are, and `answered`: which rows have an answer.

    An output whose sizes are all fixed has a row for each index, zeros for one without an answer. One with a value for
    each step, or of another size that varies, lies end to end, with `.offsets`, and `.shapes` if only they tell.

    Args:
        outputs: the outputs of a row.

    Raises:
        InputError: an output of this format's own name, or of unknown shape.
    """

    name = "npz"
    suffix = ".npz"

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        self._outputs = outputs
        for tensor in outputs:
            if tensor.name == ANSWERED or tensor.shape == ANY_SHAPE:
                raise InputError(f"output `{tensor}` cannot be written to .npz; write JSON lines.")

    def refusal(self, outputs: Outputs) -> str | None:
        for tensor in self._outputs:
            shape = outputs[tensor.name].shape
            fits = len(shape) == len(tensor.shape)
            for size, expected in zip(shape, tensor.shape, strict=False):
                fits = fits and expected in (size, str(expected))
            if not fits:
                return (
                    f"output `{tensor.name}` has shape {list(shape)}, the graph declares {tensor}."
                )
        return None

    def encode(self, answers: Sequence[Answer]) -> bytes:
        arrays = {ANSWERED: np.array([answer.outputs is not None for answer in answers], np.bool_)}
        for tensor in self._outputs:
            rows = []
            for answer in answers:
                empty = np.zeros(_least_shape(tensor), tensor.dtype)
                rows.append(empty if answer.outputs is None else answer.outputs[tensor.name])
            arrays |= _packed(tensor, rows)
        buffer = BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    def join(self, parts: Sequence[Path], target: Path) -> None:
        empty = BytesIO(self.encode([]))
        with zipfile.ZipFile(target, "w") as whole:
            for name in zipfile.ZipFile(empty).namelist():
                if name.endswith(OFFSETS + ".npy"):
                    _join_offsets(name, parts, whole)
                else:
                    _join_arrays(name, [empty, *parts], whole)


def _least_shape(tensor: Tensor) -> list[int]:
    """The shape of the output of a row without an answer."""
    return [size if isinstance(size, int) else 0 for size in tensor.shape]


def _packed(tensor: Tensor, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    name = tensor.name
    varies = [isinstance(size, str) for size in tensor.shape]
    least = _least_shape(tensor)
    none = np.zeros((0, *least[1:]), tensor.dtype)
    if not any(varies):
        return {name: np.stack(rows) if rows else np.zeros((0, *least), tensor.dtype)}
    if not any(varies[1:]):
        return {name: np.concatenate([none, *rows]), name + OFFSETS: _offsets(map(len, rows))}
    flat = [row.reshape(-1) for row in rows]
    shapes = np.array([row.shape for row in rows], np.int64).reshape(len(rows), len(least))
    return {
        name: np.concatenate([none.reshape(-1), *flat]),
        name + OFFSETS: _offsets(map(len, flat)),
        name + SHAPES: shapes,
    }


def _offsets(lengths: Iterator[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _join_arrays(name: str, parts: Sequence[Path | BytesIO], whole: zipfile.ZipFile) -> None:
    """Write the arrays of all parts, one after the other along their first axis."""
    rows = 0
    for part in parts:
        with zipfile.ZipFile(part) as archive, archive.open(name) as file:
            shape, _, dtype = _read_header(file)
        rows += shape[0]
    with whole.open(name, "w", force_zip64=True) as target:
        _write_header(target, (rows, *shape[1:]), dtype)
        for part in parts:
            with zipfile.ZipFile(part) as archive, archive.open(name) as file:
                _read_header(file)
                while data := file.read(_COPY_BYTES):
                    target.write(data)


def _join_offsets(name: str, parts: Sequence[Path], whole: zipfile.ZipFile) -> None:
    offsets = [np.zeros(1, np.int64)]
    for part in parts:
        with zipfile.ZipFile(part) as archive, archive.open(name) as file:
            own = np.lib.format.read_array(file)
        offsets.append(own[1:] + offsets[-1][-1])
    with whole.open(name, "w", force_zip64=True) as target:
        np.lib.format.write_array(target, np.concatenate(offsets))


def _write_header(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    fields = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, fields)
