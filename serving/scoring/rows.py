"""`Span`, `Row`, `Source`: the rows of an input file, and where they are in it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from deploy_rnn.errors import InputError

from ..protocol.tensors import DATATYPE_OF, from_nested

Outputs = Mapping[str, np.ndarray]
"""The answer to a row: the outputs by name, without a batch axis."""

Columns = Mapping[str, "np.dtype[Any] | None"]
"""The names that all rows of a file have -> their dtype; None if it is not one of numbers."""

WINDOW_BYTES = 32 << 20
"""Bytes of the input from which on a window takes no more rows: a window is held in memory, and so are its answers."""


class Span(NamedTuple):
    """Rows that follow each other, and are read and answered together: a window.

    Attributes:
        first: number of the first row, from 0.
        rows: how many.
        start: where the first one begins in the input; what it counts is up to the source.
        size: its share of the input, in what `Source.size` counts.
        line: of a text file, where `start` is, from 1.
    """

    first: int
    rows: int
    start: int
    size: int
    line: int = 1


@dataclass(frozen=True)
class Row:
    """A row as it stands in the input.

    Attributes:
        values: by name: lists and numbers of JSON, or arrays; inputs, and what is copied to the answer.
        line: its line in a text file, from 1; None for other files.
        fault: why it cannot be read; None if it can.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    line: int | None = None
    fault: str | None = None


class Reader(Protocol):
    """Makes rows of what a source has read; it is sent to the processes that do the work."""

    def rows(self, span: Span, payload: Any) -> list[Row]:
        """The rows of a window.

        Args:
            payload: what `Source.fetch` returned.
        """
        ...


class Source(Protocol):
    """An input file, for the process that deals out the work.

    Attributes:
        name: for messages.
        reader: makes rows of what `fetch` returns.
    """

    name: str
    reader: Reader

    @property
    def size(self) -> int | None:
        """How large the input is, for the progress; None if nobody knows."""
        ...

    def about_rows(self) -> int | None:
        """How many rows there are, as far as it can be told without reading them; always the same of an input."""
        ...

    def columns(self) -> Columns | None:
        """What all rows have; None if each has its own."""
        ...

    def spans(self, most_rows: int, done: Mapping[int, int]) -> Iterator[Span]:
        """Divide the input into windows, always the same ones.

        Args:
            most_rows: rows of a window.
            done: first row -> rows of windows that are answered already, and need not be read.
        """
        ...

    def fetch(self, span: Span) -> Any:
        """Read a window: something that can be sent to another process."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


_SOURCE_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
"""Kind of a dtype -> the kinds of arrays that it is made of, as of the numbers of JSON."""


def as_array(name: str, value: Any, dtype: str) -> np.ndarray:
    """Return a value of a row as an array of the dtype that the model takes.

    Numbers of another dtype are converted if none changes by more than rounding: whole numbers that fit, floats of
    another width, whole numbers for floats. Nothing else is.

    Raises:
        InputError: lists that are not a tensor, numbers of another kind, or out of range.
    """
    expected = np.dtype(dtype)
    if not isinstance(value, np.ndarray):
        return from_nested(name, expected, value)
    if value.dtype == expected:
        return value
    if value.dtype.kind not in _SOURCE_KINDS.get(expected.kind, ""):
        raise InputError(f"`{name}` is {value.dtype}, the model takes {dtype}.")
    with np.errstate(over="ignore"):
        converted = value.astype(expected)
    if expected.kind in "iu":
        is_kept = bool((converted == value).all()) and _same_signs(converted, value)
    else:
        is_kept = bool(np.isfinite(converted[np.isfinite(value)]).all())
    if not is_kept:
        raise InputError(f"`{name}` contains values out of range for {dtype}.")
    return converted


def is_convertible(dtype: "np.dtype[Any] | None", expected: str) -> bool:
    """Whether `as_array` takes arrays of a dtype, at least with the right numbers."""
    return dtype is not None and dtype.kind in _SOURCE_KINDS.get(np.dtype(expected).kind, "")


def _same_signs(converted: np.ndarray, value: np.ndarray) -> bool:
    """Whether no number below 0 became a large one, or the other way round."""
    return bool(((converted < 0) == (value < 0)).all())


def is_supported(dtype: str) -> bool:
    """Whether rows can have such a tensor."""
    return dtype in DATATYPE_OF
