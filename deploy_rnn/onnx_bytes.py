"""`OnnxBytes`: an .onnx file in memory, with the files that hold its large weights.

onnx is not needed: of the format (protobuf, https://protobuf.dev/programming-guides/encoding/), only what leads to the
names of these files is read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""`TensorProto.DataType` -> numpy's name, of those that numpy has."""

MAX_RANK = 32
"""numpy's own limit before 2.0."""

SHARED_ALIGNMENT = 64
"""Kernels expect their tensors at multiples of this."""

# Message -> field number -> the message in it; the fields of onnx.proto that lead to a tensor.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto", 22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}  # fmt: skip

_KEY = b"location"
"""Every tensor with external data has this key; what has not these bytes is skipped."""


class FormatError(ValueError):
    """Bytes that are not an ONNX file."""


@dataclass
class ExternalTensor:
    """A tensor of an .onnx file whose values are in another file.

    Attributes:
        name: of the tensor.
        dtype: a number of `TensorProto.DataType`.
        shape: its sizes.
        is_initializer: whether it is a weight of the main graph, and not of a loop, a branch or a function.
        entries: key -> value: "location" is the name of the file, "offset" and "length" are in bytes.
    """

    name: str = ""
    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    is_initializer: bool = False
    entries: dict[str, str] = field(default_factory=dict)

    @property
    def location(self) -> str:
        return self.entries.get("location", "")

    @property
    def offset(self) -> int | None:
        """Where it begins in its file; None if that is not a number."""
        return _number(self.entries.get("offset", "0"))

    @property
    def nbytes(self) -> int | None:
        """How many bytes it has there; None if that cannot be told."""
        if "length" in self.entries:
            return _number(self.entries["length"])
        return self._expected_nbytes

    def array(self, data: np.ndarray) -> np.ndarray | None:
        """Its values within the bytes of its file; None if they cannot be used where they are."""
        start = self.offset
        count = self._expected_nbytes
        if start is None or count is None or self.nbytes != count:
            return None
        if start % SHARED_ALIGNMENT or start + count > len(data) or not count:
            return None
        return data[start : start + count].view(DTYPES[self.dtype]).reshape(self.shape)

    @property
    def _expected_nbytes(self) -> int | None:
        """How many bytes its shape and dtype need; None if numpy does not have them."""
        if self.dtype not in DTYPES or len(self.shape) > MAX_RANK or min(self.shape, default=0) < 0:
            return None
        return prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True, eq=False)
class OnnxBytes:
    """An .onnx file that has been read.

    Attributes:
        shown_as: its path, for messages.
        graph: its bytes.
        tensors: those that are in other files.
        files: names of these files -> their bytes, uint8. Models can have the same files.
    """

    shown_as: str
    graph: bytes
    tensors: Sequence[ExternalTensor] = ()
    files: Mapping[str, np.ndarray] = field(default_factory=dict)

    def shared_weights(self) -> dict[str, np.ndarray]:
        """Weights of the main graph by name, as parts of `files`."""
        arrays: dict[str, np.ndarray] = {}
        for tensor in self.tensors:
            if tensor.is_initializer:
                array = tensor.array(self.files[tensor.location])
                if array is not None:
                    arrays[tensor.name] = array
        return arrays


def needed_bytes(tensors: Iterable[ExternalTensor]) -> dict[str, int | None]:
    """Return how many bytes of each file some tensors need, from its beginning; None for all."""
    ends: dict[str, int | None] = {}
    for tensor in tensors:
        end = ends.get(tensor.location, 0)
        if tensor.offset is None or tensor.nbytes is None or end is None:
            ends[tensor.location] = None
        else:
            ends[tensor.location] = max(end, tensor.offset + tensor.nbytes)
    return ends


def external_tensors(graph: bytes) -> list[ExternalTensor]:
    """Return the tensors of an .onnx file that name another file, in subgraphs and functions, too.

    Raises:
        FormatError: the bytes are not of the format.
    """
    if _KEY not in graph:
        return []
    try:
        return list(_tensors(graph, 0, len(graph), "ModelProto", is_main=True))
    except (IndexError, UnicodeDecodeError, RecursionError):
        raise FormatError("it is damaged, or is not an ONNX file") from None


def _tensors(
    data: bytes, start: int, end: int, message: str, *, is_main: bool
) -> Iterator[ExternalTensor]:
    if message == "TensorProto":
        tensor = _tensor(data, start, end)
        if tensor.entries:
            tensor.is_initializer = is_main
            yield tensor
        return
    kinds = _MESSAGES[message]
    for number, value, length in _fields(data, start, end):
        kind = kinds.get(number)
        if kind is not None and length is not None and data.find(_KEY, value, value + length) >= 0:
            # The one way to an initializer of the main graph: model, graph, tensor.
            stays_main = is_main and (message, number) in (("ModelProto", 7), ("GraphProto", 5))
            yield from _tensors(data, value, value + length, kind, is_main=stays_main)


def _tensor(data: bytes, start: int, end: int) -> ExternalTensor:
    tensor = ExternalTensor()
    for number, value, length in _fields(data, start, end):
        if number == 1 and length is None:
            tensor.shape.append(_signed(value))
        elif number == 1 and length is not None:
            tensor.shape += [_signed(size) for size in _packed(data, value, value + length)]
        elif number == 2 and length is None:
            tensor.dtype = value
        elif number == 8 and length is not None:
            tensor.name = data[value : value + length].decode()
        elif number == 13 and length is not None:
            key, text = _entry(data, value, value + length)
            if tensor.entries.setdefault(key, text) != text:
                raise FormatError(f"a tensor has `{key}` twice")
    return tensor


def _entry(data: bytes, start: int, end: int) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    for number, value, length in _fields(data, start, end):
        if number in texts and length is not None:
            texts[number] = data[value : value + length].decode()
    return texts[1], texts[2]


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield the fields of a message: its number, and its value, or where it begins and its length."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(data, position, end)
            yield number, value, None
        elif wire_type == 2:
            length, position = _varint(data, position, end)
            yield number, position, length
            position += length
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
        else:
            raise IndexError
    if position != end:
        raise IndexError


def _number(text: str) -> int | None:
    """A number in decimal digits below 10**18; None for any other text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def _packed(data: bytes, start: int, end: int) -> Iterator[int]:
    position = start
    while position < end:
        value, position = _varint(data, position, end)
        yield value


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the position behind it. Raises: IndexError: it does not end."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), position
    raise IndexError


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
