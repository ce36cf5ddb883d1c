"""`TensorSpec`: what a graph takes or gives, in words."""

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
        """`None` for a dynamic axis that the graph gives no name; it gets one of its own, such as "x.0"."""
        return cls(name, dtype, tuple(f"{name}.{axis}" if size is None else size for axis, size in enumerate(shape)))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"
