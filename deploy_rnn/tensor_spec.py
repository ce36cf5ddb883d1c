"""`TensorSpec`: name, dtype and shape of an input or output."""

from collections.abc import Iterable
from dataclasses import dataclass

DTYPES = {"float": "float32", "double": "float64"}
"""The names of ONNX and onnxruntime where they are not numpy's."""


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output.

    Attributes:
        name: as in the graph.
        dtype: numpy's name, such as "float32".
        shape: a number for each fixed axis, a name such as "B" for each dynamic one.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def of(cls, name: str, dtype: str, shape: Iterable[int | str | None]) -> "TensorSpec":
        """Make a spec from a shape with `None` for a dynamic axis without a name, which is then called "x.0" here."""
        sizes = [f"{name}.{axis}" if size is None else size for axis, size in enumerate(shape)]
        return cls(name, dtype, tuple(sizes))

    def __str__(self) -> str:
        sizes = ", ".join(str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} [{sizes}]"
