"""Parquet and Arrow IPC: a column for each input, and one for each output. It needs `pyarrow`.

A row's value is a number, or a list for each axis: `list<list<float>>` for (T, features).
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError
from deploy_rnn.tensor_spec import ANY_SHAPE

from .answers import Answer, OutputFormat
from .rows import WINDOW_BYTES, Columns, Outputs, Reader, Row, Source, Span

ROW_GROUP_BYTES = 64 << 20
"""Bytes of answers from which on they are written as a row group of a Parquet file."""


class ArrowSource(Source):
    """A Parquet or Arrow file, which is read batch by batch.

    Args:
        path: of the file.
        name: "parquet" or "arrow"; the latter in the file format (Feather) or the stream format.

    Raises:
        InputError: it is not such a file.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = str(path)
        self.reader = ArrowReader()
        try:
            self._file = ParquetBatches(path) if name == "parquet" else _open_ipc(path)
        except (pa.ArrowException, OSError) as error:
            kind = "a Parquet" if name == "parquet" else "an Arrow"
            raise InputError(f"{self.name!r} is not {kind} file: {error}.") from None
        self.schema: pa.Schema = self._file.schema
        self._cursor: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        # Of the next row that the cursor gives.
        self._position: int | None = None

    @property
    def size(self) -> int | None:
        return self._file.rows

    def about_rows(self) -> int:
        return self._file.rows

    def columns(self) -> Columns:
        return {field.name: _dtype_of(field.type) for field in self.schema}

    def spans(self, most_rows: int, done: Mapping[int, int]) -> Iterator[Span]:
        if self._file.rows:
            row_bytes = max(1, self._file.bytes // self._file.rows)
            most_rows = max(1, min(most_rows, WINDOW_BYTES // row_bytes))
        for first in range(0, self._file.rows, most_rows):
            count = min(most_rows, self._file.rows - first)
            if first not in done:
                yield Span(first, count, first, count)

    def fetch(self, span: Span) -> bytes:
        if self._position is None or span.first < self._position:
            self._position, self._cursor = self._file.batches_from(span.first)
            self._rest = None
        self._take(span.first - self._position)
        table = pa.Table.from_batches(self._take(span.rows), self.schema).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema) as writer:
            writer.write_table(table)
        payload: bytes = sink.getvalue().to_pybytes()
        return payload

    def close(self) -> None:
        self._cursor = iter(())
        self._rest = None
        self._file.close()

    def _take(self, count: int) -> list[pa.RecordBatch]:
        """The next rows."""
        batches = []
        while count:
            batch = self._rest if self._rest is not None else next(self._cursor)
            part = batch.slice(0, count)
            batches.append(part)
            count -= part.num_rows
            self._rest = batch.slice(part.num_rows) if part.num_rows < batch.num_rows else None
            self._position = (self._position or 0) + part.num_rows
        return batches


class ParquetBatches:
    """The batches of a Parquet file.

    Attributes:
        schema: of the file.
        rows, bytes: of all of it, as they are in memory.
    """

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.rows: int = metadata.num_rows
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        self.bytes: int = sum(group.total_byte_size for group in groups)
        self._starts = [0, *accumulate(group.num_rows for group in groups)]

    def batches_from(self, row: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        """The first row of the row group that has `row`, and the batches from there on."""
        first = bisect_right(self._starts, row) - 1
        groups = list(range(first, len(self._starts) - 1))
        batches = self._file.iter_batches(batch_size=1024, row_groups=groups)
        return self._starts[first], batches

    def close(self) -> None:
        self._file.close()


class IpcFileBatches:
    """The batches of an Arrow file, which is mapped into memory; attributes as of `ParquetBatches`."""

    def __init__(self, path: Path) -> None:
        self._map = pa.memory_map(str(path))
        self._file = pa.ipc.open_file(self._map)
        self.schema = self._file.schema
        counts = [batch.num_rows for batch in self._batches(0)]
        self._starts = [0, *accumulate(counts)]
        self.rows = self._starts[-1]
        self.bytes = path.stat().st_size

    def batches_from(self, row: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        first = bisect_right(self._starts, row) - 1
        return self._starts[first], self._batches(first)

    def close(self) -> None:
        self._map.close()

    def _batches(self, first: int) -> Iterator[pa.RecordBatch]:
        for index in range(first, self._file.num_record_batches):
            yield self._file.get_batch(index)


class IpcStreamBatches:
    """The batches of a file in Arrow's stream format; attributes as of `ParquetBatches`."""

    def __init__(self, path: Path) -> None:
        self._map = pa.memory_map(str(path))
        reader = pa.ipc.open_stream(self._map)
        self.schema = reader.schema
        self.rows = sum(batch.num_rows for batch in reader)
        self.bytes = path.stat().st_size

    def batches_from(self, row: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        self._map.seek(0)
        return 0, iter(pa.ipc.open_stream(self._map))

    def close(self) -> None:
        self._map.close()


def _open_ipc(path: Path) -> IpcFileBatches | IpcStreamBatches:
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    return IpcFileBatches(path) if is_file else IpcStreamBatches(path)


def _dtype_of(data_type: pa.DataType) -> "np.dtype[Any] | None":
    """The dtype of the numbers in a column; None if it does not hold numbers, or lists of them."""
    data_type = _storage_type(data_type)
    while _is_list(data_type):
        data_type = data_type.value_type
    if pa.types.is_boolean(data_type) or _is_number(data_type):
        dtype: np.dtype[Any] = np.dtype(data_type.to_pandas_dtype())
        return dtype
    return None


def _storage_type(data_type: pa.DataType) -> pa.DataType:
    return data_type.storage_type if isinstance(data_type, pa.BaseExtensionType) else data_type


def _is_number(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(data_type) or pa.types.is_floating(data_type))


def _is_list(data_type: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_list(data_type)
        or types.is_large_list(data_type)
        or types.is_fixed_size_list(data_type)
    )


class ArrowReader(Reader):
    """Makes rows of tables."""

    def rows(self, span: Span, payload: bytes) -> list[Row]:
        table = pa.ipc.open_stream(payload).read_all()
        columns = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            is_numbers = _dtype_of(column.type) is not None
            columns[name] = _Numbers(column).rows() if is_numbers else column.to_pylist()
        rows = []
        for index in range(table.num_rows):
            values = {name: column[index] for name, column in columns.items()}
            rows.append(_row(values))
        return rows


class _Broken(NamedTuple):
    """A value that is not a tensor."""

    reason: str


def _row(values: Mapping[str, Any]) -> Row:
    for name, value in values.items():
        if isinstance(value, _Broken):
            good = {key: other for key, other in values.items() if not isinstance(other, _Broken)}
            return Row(good, fault=f"`{name}` {value.reason}")
    return Row(values)


class _Numbers:
    """A column of numbers, or of lists of them: its numbers end to end, and where each list begins."""

    def __init__(self, column: pa.Array) -> None:
        if isinstance(column.type, pa.BaseExtensionType):
            self._tensor_shape = list(getattr(column.type, "shape", ()))
            column = column.storage
        else:
            self._tensor_shape = []
        self._is_missing = _nulls(column)
        # For each level of lists: where each begins, and how many before it are null.
        self._levels: list[tuple[np.ndarray, np.ndarray | None]] = []
        while _is_list(column.type):
            offsets = _offsets(column)
            column = column.values
            self._levels.append((offsets, _null_counts(column)))
        if column.null_count:
            column = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
        self._values = column.to_numpy(zero_copy_only=False)

    def rows(self) -> list[Any]:
        """An array for each row; None if it is null, a `_Broken` if it is not a tensor."""
        count = len(self._is_missing)
        return [None if self._is_missing[row] else self._row(row) for row in range(count)]

    def _row(self, row: int) -> Any:
        shape = []
        start, stop = row, row + 1
        for offsets, null_counts in self._levels:
            sizes = np.diff(offsets[start : stop + 1])
            size = int(sizes[0]) if len(sizes) else 0
            if (sizes != size).any():
                return _Broken("has data that is not a tensor: lists of different lengths.")
            start, stop = int(offsets[start]), int(offsets[stop])
            if null_counts is not None and null_counts[start] != null_counts[stop]:
                return _Broken("contains null.")
            shape.append(size)
        values = self._values[start:stop]
        return np.reshape(values, self._tensor_shape or shape)


def _offsets(column: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(np.arange(len(column) + 1) * column.type.list_size)
    return np.asarray(column.offsets)


def _nulls(column: pa.Array) -> np.ndarray:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False))


def _null_counts(column: pa.Array) -> np.ndarray | None:
    """How many of the first values are null, for each number of them; None if none is."""
    if not column.null_count:
        return None
    return np.cumsum([0, *_nulls(column)])


class ArrowAnswers(OutputFormat):
    """A column for each output, null for a row without an answer: a number, or a list for each axis.

    Args:
        name: "parquet" or "arrow".
        outputs: those of a row.
        kept: the columns of the input that are copied, with their types.

    Raises:
        InputError: an output of unknown shape.
    """

    suffix = ".arrows"

    def __init__(self, name: str, outputs: Sequence[Tensor], kept: Sequence[pa.Field]) -> None:
        self.name = name
        self._outputs = outputs
        self._kept = kept
        fields = list(kept)
        for tensor in outputs:
            if tensor.shape == ANY_SHAPE:
                raise InputError(f"output `{tensor}` cannot be a column; write JSON lines.")
            data_type = pa.from_numpy_dtype(np.dtype(tensor.dtype))
            for _ in tensor.shape:
                data_type = pa.list_(data_type)
            fields.append(pa.field(tensor.name, data_type))
        self._schema = pa.schema(fields)

    def refusal(self, outputs: Outputs) -> str | None:
        for tensor in self._outputs:
            shape = outputs[tensor.name].shape
            if len(shape) != len(tensor.shape):
                return (
                    f"output `{tensor.name}` has shape {list(shape)}, the graph declares {tensor}."
                )
        return None

    def encode(self, answers: Sequence[Answer]) -> bytes:
        columns = []
        for field in self._kept:
            values = [_plain(answer.kept.get(field.name)) for answer in answers]
            columns.append(pa.array(values, field.type))
        for tensor in self._outputs:
            rows = [
                None if answer.outputs is None else answer.outputs[tensor.name]
                for answer in answers
            ]
            columns.append(_column(tensor, rows))
        table = pa.Table.from_arrays(columns, schema=self._schema)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._schema) as writer:
            writer.write_table(table)
        encoded: bytes = sink.getvalue().to_pybytes()
        return encoded

    def join(self, parts: Sequence[Path], target: Path) -> None:
        if self.name == "parquet":
            self._join_parquet(parts, target)
            return
        with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, self._schema) as writer:
            for part in parts:
                writer.write_table(_read_part(part))

    def _join_parquet(self, parts: Sequence[Path], target: Path) -> None:
        waiting: list[pa.Table] = []
        waiting_bytes = 0
        with pq.ParquetWriter(target, self._schema) as writer:
            for part in parts:
                table = _read_part(part)
                waiting.append(table)
                waiting_bytes += table.nbytes
                if waiting_bytes >= ROW_GROUP_BYTES:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
                    waiting_bytes = 0
            if waiting:
                writer.write_table(pa.concat_tables(waiting))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _read_part(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def _column(tensor: Tensor, rows: Sequence[np.ndarray | None]) -> pa.Array:
    """A column of tensors, null where there is none."""
    is_missing = np.array([row is None for row in rows], np.bool_)
    empty = np.zeros([0] * len(tensor.shape), tensor.dtype)
    arrays = [empty if row is None else row for row in rows]
    if not tensor.shape:
        return pa.array(np.array(arrays, tensor.dtype), mask=is_missing)
    values = np.concatenate([empty.reshape(-1), *(array.reshape(-1) for array in arrays)])
    column = pa.array(values)
    # From the innermost lists to those of the rows.
    for axis in reversed(range(1, len(tensor.shape))):
        lists = [np.full(int(np.prod(array.shape[:axis])), array.shape[axis]) for array in arrays]
        column = pa.ListArray.from_arrays(_starts(np.concatenate([[], *lists])), column)
    sizes = np.array([len(array) for array in arrays])
    return pa.ListArray.from_arrays(_starts(sizes), column, mask=pa.array(is_missing))


def _starts(sizes: np.ndarray) -> pa.Array:
    """Where lists of these sizes begin, and the last one ends."""
    return pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
