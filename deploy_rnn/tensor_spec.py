"""`TensorSpec`: name, dtype and shape of an input or output. `SizeRange`: the sizes of a dynamic axis. `IndexRange`:
the indices that are in a table."""

import ast
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from deploy_rnn.json_fields import MOST, JsonField

DTYPES = {"float": "float32", "double": "float64"}
"""The names of ONNX and onnxruntime where they are not numpy's."""

ANY_SHAPE = ("...",)
"""The shape of an input or output of which a file does not say how many axes it has."""

MOST_LEAST = 1_000_000
"""The smallest size of an axis is at most this: a model is tried with it when it is loaded."""

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output.

    Attributes:
        name: as in the graph.
        dtype: numpy's name, such as "float32".
        shape: a number for each fixed axis, a name such as "B" for each dynamic one; `ANY_SHAPE` if a file does not say
            how many axes there are.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def of(cls, name: str, dtype: str, shape: Iterable[int | str | None]) -> "TensorSpec":
        """Make a spec from a shape with `None` for a dynamic axis without a name, which is then called "x.0" here."""
        sizes = [f"{name}.{axis}" if size is None else size for axis, size in enumerate(shape)]
        return cls(name, dtype, tuple(sizes))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a shape that the file does not say is null."""
        shape = None if self.shape == ANY_SHAPE else list(self.shape)
        return {"name": self.name, "dtype": self.dtype, "shape": shape}

    def __str__(self) -> str:
        sizes = ", ".join(str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} [{sizes}]"


class SizeRange(NamedTuple):
    """The sizes that a dynamic axis may have.

    Attributes:
        least: the smallest, 1 or more.
        most: the largest; None if there is none.
    """

    least: int = 1
    most: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether a size is left out."""
        return self != SizeRange()

    def takes(self, size: int) -> bool:
        return self.nearest(size) == size

    def within(self, other: "SizeRange") -> "SizeRange":
        """The sizes that both have."""
        ends = [most for most in (self.most, other.most) if most is not None]
        return SizeRange(max(self.least, other.least), min(ends, default=None))

    def nearest(self, size: int) -> int:
        """The size itself, or the end of the range that is next to it."""
        size = max(size, self.least)
        return size if self.most is None else min(size, self.most)

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.least} or more"
        return f"{self.least} to {self.most}"


ANY_SIZE = SizeRange()

Ranges = Mapping[str, SizeRange]
"""Dynamic axis -> its range; an axis that is left out may have any size."""


def read_ranges(field: JsonField) -> dict[str, SizeRange]:
    """From JSON: {"T": [2, 200], "B": [1, null]}. Raises: FieldError: not an object of such pairs."""
    ranges: dict[str, SizeRange] = {}
    for name, pair in field.entries().items():
        ends = pair.items()
        if len(ends) != 2:
            pair.fail("a list of two: the least and the most")
        least = ends[0].whole_number(1, MOST_LEAST)
        most = ends[1].or_none(partial(JsonField.whole_number, least=least))
        ranges[name] = SizeRange(least, most)
    return ranges


class IndexRange(NamedTuple):
    """What an index into a table may be, before something is added to it.

    Attributes:
        least, most: the smallest and the largest.
    """

    least: int
    most: int

    def nearest(self, number: int) -> int:
        """The number itself, or the end of the range that is next to it."""
        return min(max(number, self.least), self.most)

    def within(self, other: "IndexRange") -> "IndexRange":
        """What both allow."""
        return IndexRange(max(self.least, other.least), min(self.most, other.most))

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"


IndexRanges = Mapping[str, IndexRange]
"""Inputs that are indices -> what they may be."""


def read_index_ranges(field: JsonField) -> dict[str, IndexRange]:
    """From JSON: {"tokens": [0, 999]}. Raises: FieldError: not an object of such pairs."""
    ranges: dict[str, IndexRange] = {}
    for name, pair in field.entries().items():
        ends = pair.items()
        if len(ends) != 2:
            pair.fail("a list of two: the least and the most")
        least = ends[0].whole_number(-MOST)
        ranges[name] = IndexRange(least, ends[1].whole_number(least))
    return ranges


def axis_names(size: object) -> frozenset[str]:
    """Return the names in a size: one, or those of an expression such as "4*T"; none in a number."""
    return frozenset(re.findall(r"[A-Za-z_]\w*(?!\w*\()", str(size)))


def size_of(axis: int | str, sizes: Mapping[str, int]) -> int | None:
    """Return the size of an axis, which may be written with those of others; None if they do not tell it.

    >>> size_of("4*T", {"T": 6})
    24
    """
    if isinstance(axis, int):
        return axis
    if axis in sizes:
        return sizes[axis]
    try:
        return _evaluated(ast.parse(axis, mode="eval").body, sizes)
    except (SyntaxError, ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError):
        return None


def _evaluated(node: ast.AST, sizes: Mapping[str, int]) -> int:
    """Raises: KeyError: an operator or a name that is unknown."""
    if isinstance(node, ast.Constant):
        return int(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.BinOp):
        compute = _OPERATORS[type(node.op)]
        result: int = compute(_evaluated(node.left, sizes), _evaluated(node.right, sizes))
        return result
    return sizes[node.id if isinstance(node, ast.Name) else ast.dump(node)]
