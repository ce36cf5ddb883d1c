"""Tensors of the protocol to numpy and back: datatypes, shapes, bytes, JSON."""

import math
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

# Kind of a dtype -> the kinds of values that it accepts from JSON.
_ACCEPTED_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}

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


def dtype_of(name: str, datatype: object) -> np.dtype[Any]:
    """The little-endian numpy dtype of input `name`.

    Raises:
        InputError: the datatype is unknown, or one that no model here takes, such as BYTES and BF16.
    """
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        supported = ", ".join(DATATYPES)
        raise InputError(f"`{name}` has datatype {_shorten(datatype)}; must be one of {supported}.")
    dtype = np.dtype(DATATYPES[datatype])
    return dtype.newbyteorder("<")


def check_shape(name: str, shape: object, dtype: np.dtype[Any], max_bytes: int) -> tuple[int, ...]:
    """`shape` as a tuple, checked before anything is allocated for it.

    Raises:
        InputError: it is not a list of at most 32 integers >= 0.
        TooLargeError: the tensor would have more than `max_bytes`.
    """
    # A list of JSON, or a repeated field of protobuf; a string is a sequence too.
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > MAX_RANK:
        raise InputError(
            f"`{name}` has shape {_shorten(shape)}; must be a list of at most {MAX_RANK} sizes."
        )
    sizes = tuple(shape)
    for size in sizes:
        # True is an int too.
        if type(size) is not int or size < 0:
            raise InputError(
                f"`{name}` has size {_shorten(size)} in its shape; sizes must be integers >= 0."
            )
    if math.prod(sizes) * dtype.itemsize > max_bytes:
        text = _shorten(list(sizes))
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
    return np.require(array, requirements="A")


def to_bytes(array: np.ndarray) -> bytes:
    """The elements row by row, little-endian."""
    little_endian = array.dtype.newbyteorder("<")
    return array.astype(little_endian, copy=False).tobytes()


def from_values(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], data: object
) -> np.ndarray:
    """The tensor of `data`: numbers in a flat list, or nested as `shape`.

    Raises:
        InputError: the shape needs another number of values, or the datatype cannot represent a value.
    """
    array = _as_array(name, data, dtype)
    needed_values = math.prod(shape)
    is_flat_or_nested = array.ndim == 1 or array.shape == shape
    if array.size != needed_values or not is_flat_or_nested:
        raise InputError(
            f"`{name}` has {array.size} values in {list(array.shape)}; its shape {list(shape)} needs {needed_values}, "
            "flat or nested like it."
        )
    return _convert(name, array, dtype).reshape(shape)


def _as_array(name: str, data: object, dtype: np.dtype[Any]) -> np.ndarray:
    """`data` as an array of the dtype that numpy finds in it."""
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        raise InputError(f"`{name}` has data {_shorten(data)}; must be a list of values.")
    try:
        array = np.asarray(data)
        # numpy makes floats of integers of which some need int64 and others uint64.
        if dtype == np.uint64 and array.dtype.kind == "f":
            values = np.asarray(data, dtype=object)
            if all(type(value) is int and 0 <= value < 2**64 for value in values.flat):
                array = values.astype(np.uint64)
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"`{name}` has data that is not a tensor: {error}.") from None
    return array


def _convert(name: str, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """`array` as `dtype`, if no value changes by more than rounding."""
    datatype = DATATYPE_OF[dtype.name]
    if array.size == 0:
        return array.astype(dtype)
    if array.dtype.kind not in _ACCEPTED_KINDS[dtype.kind]:
        # As Python has it: numpy would write "np.float64(2.5)".
        (first,) = array.reshape(-1)[:1].tolist()
        example = _shorten(first)
        raise InputError(f"`{name}` contains values that are not {datatype}, such as {example}.")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InputError(
                f"`{name}` contains values out of range for {datatype}, {limits.min} to {limits.max}."
            )
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    if dtype.kind == "f":
        # A finite value that became infinite was too large.
        was_finite = np.isfinite(array)
        if not np.isfinite(converted[was_finite]).all():
            raise InputError(f"`{name}` contains values out of range for {datatype}.")
    return converted


def _shorten(value: object) -> str:
    """At most 80 characters of a value that came from a client."""
    # `repr` of a huge integer takes long, or fails.
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a huge number"
    text = repr(value)
    if len(text) > 80:
        text = f"{text[:77]}..."
    return text
