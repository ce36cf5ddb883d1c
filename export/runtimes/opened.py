"""What a runtime is asked for: a file to open, and a function that runs it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..onnx_file import OnnxFile

Feeds = Mapping[str, np.ndarray]
"""The inputs of a run, by name."""

Run = Callable[[Feeds], Sequence[np.ndarray]]
"""An opened file: inputs -> outputs, in the order of the file."""


@dataclass(frozen=True)
class Source:
    """A file to open.

    Attributes:
        path: where it is.
        inputs: the names of its inputs, in order.
        outputs: the names of its outputs, in order.
        dtypes: the dtype of each input, such as "float32".
        shapes: the shape of each input, if the file is to be opened for one size only; None for any size.
    """

    path: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    dtypes: Mapping[str, str]
    shapes: Mapping[str, Sequence[int]] | None = None

    @classmethod
    def of(cls, path: Path, file: "OnnxFile") -> "Source":
        """From what a file says of itself."""
        return cls(
            path=str(path),
            inputs=[spec.name for spec in file.inputs],
            outputs=[spec.name for spec in file.outputs],
            dtypes={spec.name: spec.dtype for spec in file.inputs},
        )


class RefusedFileError(Exception):
    """A runtime does not take a file, and says so in its own way, such as by writing nothing."""
