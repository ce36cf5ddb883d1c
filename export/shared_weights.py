"""The weights of several graphs in one file: what two graphs have in common is stored once."""

import hashlib
from pathlib import Path

import onnx_ir as ir

# A tensor smaller than this stays in its graph: where the bytes of a shape or a bias are does not matter.
EXTERNAL_BYTES = 1024

# Where a tensor may begin, so that a runtime can map the file into memory.
ALIGNMENT = 4096


class SharedWeights:
    """A file that grows by one tensor after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[bytes, int] = {}  # digest -> where its bytes begin
        path.touch()

    def take(self, graph: ir.Model) -> None:
        """Move the large constants of `graph` into the file; the graph then refers to it."""
        for value in graph.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= EXTERNAL_BYTES:
                value.const_value = ir.ExternalTensor(
                    self._path.name,
                    self._offset(tensor.tobytes()),
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tuple(tensor.numpy().shape)),
                    name=str(value.name),
                    base_dir=self._path.parent,
                )

    def _offset(self, data: bytes) -> int:
        """Where the file has these bytes; they are written if it does not."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            with self._path.open("ab") as file:
                file.write(bytes(-file.tell() % ALIGNMENT))
                self._offsets[digest] = file.tell()
                file.write(data)
        return self._offsets[digest]
