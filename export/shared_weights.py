"""The weights of several graphs in one file; weights that two graphs have in common are stored once."""

import hashlib
from pathlib import Path

import onnx_ir as ir

# Smaller tensors (biases, shapes) stay in their graph: storing them once would save next to nothing.
EXTERNAL_BYTES = 1024

# Tensors begin at multiples of this, so that a runtime can map the file into memory.
ALIGNMENT = 4096


class SharedWeights:
    """A file to which graphs move their weights, one tensor after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[
            bytes, int
        ] = {}  # digest of a tensor's bytes -> where they begin in the file
        path.touch()

    def take(self, graph: ir.Model) -> None:
        """Move the large constants of `graph` into the file; the graph then refers to it."""
        for value in graph.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= EXTERNAL_BYTES:
                value.const_value = ir.ExternalTensor(
                    self._path.name,
                    self._store(tensor.tobytes()),
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tuple(tensor.numpy().shape)),
                    name=str(value.name),
                    base_dir=self._path.parent,
                )

    def _store(self, data: bytes) -> int:
        """Return where these bytes begin in the file; append them if they are not there yet."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            with self._path.open("ab") as file:
                padding = -file.tell() % ALIGNMENT
                file.write(bytes(padding))
                self._offsets[digest] = file.tell()
                file.write(data)
        return self._offsets[digest]
