"""Tensors of the protocol to numpy and back: datatypes, shapes, bytes, JSON."""

import itertools
import json
import math
import reprlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from deploy_rnn.errors import InputError, TooLargeError, UnsupportedError

DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""The protocol's name -> numpy's."""

DATATYPE_OF = {dtype: name for name, dtype in DATATYPES.items()}

# numpy works out each of these anew whenever it is asked.
_DTYPE_OF = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in DATATYPES.items()}
_NAME_OF = {np.dtype(dtype): dtype for dtype in DATATYPES.values()}

# Kind of a dtype -> the types of the values that it accepts from JSON.
_ACCEPTED_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
}

_IS_LITTLE_ENDIAN = sys.byteorder == "little"

MAX_RANK = 32
"""numpy's own limit before 2.0."""


def datatype(dtype: str) -> str:
    """The protocol's name of a numpy dtype.

    Raises:
        UnsupportedError: it has no name here, as strings do not.
    """
    if dtype not in DATATYPE_OF:
        supported = ", ".join(DATATYPE_OF)
        raise UnsupportedError(
            f"a tensor of dtype {dtype} cannot be sent; must be one of {supported}."
        )
    return DATATYPE_OF[dtype]


def datatype_of(array: np.ndarray) -> str:
    """The protocol's name of the dtype of an array.

    Raises:
        UnsupportedError: it has no name here.
    """
    return datatype(_NAME_OF.get(array.dtype) or array.dtype.name)


def dtype_of(name: str, datatype: object) -> np.dtype[Any]:
    """The little-endian numpy dtype of input `name`.

    Raises:
        InputError: the datatype is unknown, or one that no model here takes, such as BYTES and BF16.
    """
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        supported = ", ".join(DATATYPES)
        raise InputError(f"`{name}` has datatype {shown(datatype)}; must be one of {supported}.")
    return _DTYPE_OF[datatype]


def check_shape(name: str, shape: object, dtype: np.dtype[Any], max_bytes: int) -> tuple[int, ...]:
    """`shape` as a tuple, checked before anything is allocated for it.

    Raises:
        InputError: it is not a list of at most 32 integers >= 0.
        TooLargeError: the tensor would have more than `max_bytes`, or would but for a size of 0.
    """
    # A list of JSON, or a repeated field of protobuf; a string is a sequence too.
    if isinstance(shape, str) or not isinstance(shape, list | Sequence) or len(shape) > MAX_RANK:
        raise InputError(
            f"`{name}` has shape {shown(shape)}; must be a list of at most {MAX_RANK} sizes."
        )
    sizes = tuple(shape)
    for size in sizes:
        # True is an int too.
        if type(size) is not int or size < 0:
            raise InputError(
                f"`{name}` has size {shown(size)} in its shape; sizes must be integers >= 0."
            )
    # numpy has limits for an empty tensor too, such as one of shape [2**62, 0].
    if math.prod([size for size in sizes if size]) * dtype.itemsize > max_bytes:
        text = shown(list(sizes))
        raise TooLargeError(
            f"`{name}` of shape {text} has more than {max_bytes} bytes, which is the limit."
        )
    return sizes


def from_bytes(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], raw: memoryview | bytes
) -> np.ndarray:
    """The tensor whose elements, row by row, are `raw`; it shares memory with `raw` where that is aligned.

    Raises:
        InputError: the shape needs another number of bytes, or a BOOL is neither 0 nor 1.
    """
    needed_bytes = math.prod(shape) * dtype.itemsize
    if len(raw) != needed_bytes:
        tensor_type = f"{DATATYPE_OF[dtype.name]} {list(shape)}"
        raise InputError(
            f"`{name}` has {len(raw)} bytes; {tensor_type} needs {needed_bytes}, {dtype.itemsize} for each element."
        )
    if dtype.kind == "b":
        largest_byte = np.frombuffer(raw, np.uint8).max(initial=0)
        if largest_byte > 1:
            raise InputError(f"`{name}` is BOOL and contains a byte other than 0 and 1.")
    array = np.frombuffer(raw, dtype).reshape(shape)
    # Bytes after JSON may start anywhere; onnxruntime needs them aligned.
    return array if array.flags.aligned else array.copy()


def to_bytes(array: np.ndarray) -> bytes:
    """The elements row by row, little-endian."""
    if not _IS_LITTLE_ENDIAN:
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return array.tobytes()


def from_values(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], data: object
) -> np.ndarray:
    """The tensor of `data`: numbers in a flat list, or nested as `shape`.

    Raises:
        InputError: the shape needs another number of values, or the datatype cannot represent a value.
    """
    values, sizes = _flatten(name, data)
    _check_types(name, values, dtype)
    needed_values = math.prod(shape)
    is_flat_or_nested = len(sizes) == 1 or sizes == shape
    if len(values) != needed_values or not is_flat_or_nested:
        raise InputError(
            f"`{name}` has {len(values)} values in {list(sizes)}; its shape {list(shape)} needs {needed_values}, "
            "flat or nested like it."
        )
    return _convert(name, values, dtype).reshape(shape)


def from_nested(name: str, dtype: np.dtype[Any], data: object) -> np.ndarray:
    """The tensor of nested lists of numbers, which say its shape; or of a number, which has no axes.

    Raises:
        InputError: lists that are not a tensor, or the datatype cannot represent a value.
    """
    if not isinstance(data, list):
        _check_types(name, [data], dtype)
        return _convert(name, [data], dtype).reshape(())
    values, sizes = _flatten(name, data)
    _check_types(name, values, dtype)
    return _convert(name, values, dtype).reshape(sizes)


def from_row(name: str, dtype: np.dtype[Any], row: object) -> np.ndarray:
    """The tensor of shape (1, ...) of one row: a number, or numbers in nested lists, which are the row's shape.

    Raises:
        InputError: the lists are not a tensor, or the datatype cannot represent a value.
    """
    values, sizes = _flatten(name, [row])
    _check_types(name, values, dtype)
    array = _convert(name, values, dtype)
    refuse_infinity(name, array)
    return array.reshape(sizes)


def refuse_infinity(name: str, array: np.ndarray) -> None:
    """Check a tensor that came as JSON, which cannot represent infinity: Python reads 1e400 as that.

    Raises:
        InputError: it has a value that is not finite.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        datatype_name = DATATYPE_OF[array.dtype.name]
        raise InputError(f"`{name}` contains values out of range for {datatype_name}.")


def _flatten(name: str, data: object) -> tuple[list[Any], tuple[int, ...]]:
    """The values in nested lists, row by row, and the shape that the lists have."""
    if not isinstance(data, list):
        raise InputError(f"`{name}` has data {shown(data)}; must be a list of values.")
    values: list[Any] = data
    sizes = [len(values)]
    # The first value alone tells most requests, whose values are numbers.
    while values and type(values[0]) is list and set(map(type, values)) == {list}:
        lengths = set(map(len, values))
        if len(lengths) > 1 or len(sizes) == MAX_RANK:
            problem = "nested too deeply" if len(lengths) == 1 else "lists of different lengths"
            raise InputError(f"`{name}` has data that is not a tensor: {problem}.")
        sizes += lengths
        values = list(itertools.chain.from_iterable(values))
    return values, tuple(sizes)


def _check_types(name: str, values: Sequence[Any], dtype: np.dtype[Any]) -> None:
    """Check that all values are of a kind that the dtype accepts.

    This is done before numpy sees them: it would make every one as wide as the longest text among them.
    """
    accepted_types = _ACCEPTED_TYPES[dtype.kind]
    if accepted_types.issuperset(map(type, values)):
        return
    wrong_value = next(value for value in values if type(value) not in accepted_types)
    if isinstance(wrong_value, list):
        raise InputError(
            f"`{name}` has data that is not a tensor: lists and values next to each other."
        )
    datatype = DATATYPE_OF[dtype.name]
    example = shown(wrong_value)
    raise InputError(f"`{name}` contains values that are not {datatype}, such as {example}.")


def _convert(name: str, values: Sequence[Any], dtype: np.dtype[Any]) -> np.ndarray:
    """`values` as an array, if none changes by more than rounding."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        whole = _whole_numbers(values, limits)
        if whole is None:
            raise InputError(
                f"`{name}` contains values out of range for {DATATYPE_OF[dtype.name]}, {limits.min} to {limits.max}."
            )
        return whole.astype(dtype, copy=False)
    if dtype.kind != "f":
        return np.array(values, dtype)
    try:
        array = np.array(values, np.float64)
    except OverflowError:  # an integer beyond float64
        raise InputError(
            f"`{name}` contains values out of range for {DATATYPE_OF[dtype.name]}."
        ) from None
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    # A finite value that became infinite was too large.
    was_finite = np.isfinite(array)
    if not np.isfinite(converted[was_finite]).all():
        raise InputError(f"`{name}` contains values out of range for {DATATYPE_OF[dtype.name]}.")
    return converted


def _whole_numbers(values: Sequence[int], limits: np.iinfo[Any]) -> np.ndarray | None:
    """The integers in a dtype that is wide enough for them; None if one is out of range."""
    try:
        # numpy 1 would turn an integer that a narrower dtype cannot represent into another one.
        array = np.array(values, np.int64 if limits.max <= np.iinfo(np.int64).max else object)
    except OverflowError:
        return None
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        return None
    return array


def shown(value: object) -> str:
    """At most 80 characters of a value that came from a client, as JSON has it."""
    # `repr` of a huge integer takes long, or fails.
    if isinstance(value, int | float) and abs(value) >= 10**40:
        return "a huge number"
    text = _SHORT_JSON.repr(value)
    if len(text) > 80:
        text = f"{text[:77]}..."
    return text


class _ShortJson(reprlib.Repr):
    """The built-in `repr` would write all of a value before it is cut, and fails where lists are nested deeply."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = MAX_RANK
        self.maxother = 80

    def repr_str(self, value: str, level: int) -> str:
        return json.dumps(value[:80])

    def repr_bool(self, value: bool, level: int) -> str:
        return json.dumps(value)

    def repr_NoneType(self, value: None, level: int) -> str:
        return json.dumps(value)


_SHORT_JSON = _ShortJson()
