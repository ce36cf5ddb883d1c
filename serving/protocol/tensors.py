"""The protocol's tensors, and numpy's: datatypes, shapes, bytes, JSON."""

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

DATATYPE_OF = {numpy: name for name, numpy in DATATYPES.items()}

MAX_RANK = 32
"""numpy's own limit before 2.0."""


def datatype(dtype: str) -> str:
    """The protocol's name of a numpy dtype.

    Raises:
        UnsupportedError: it has none here, such as text.
    """
    try:
        return DATATYPE_OF[dtype]
    except KeyError:
        raise UnsupportedError(f"a tensor of {dtype} cannot be sent; models of {', '.join(DATATYPES)} can.") from None


def dtype_of(name: str, datatype: object) -> np.dtype[Any]:
    """The little-endian numpy dtype of input `name`.

    Raises:
        InputError: there is no such datatype, or no model here takes it, as with BYTES and BF16.
    """
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise InputError(f"`{name}` has datatype {_short(datatype)}; the models here take {', '.join(DATATYPES)}.")
    return np.dtype(DATATYPES[datatype]).newbyteorder("<")


def check_shape(name: str, shape: object, dtype: np.dtype[Any], max_bytes: int) -> tuple[int, ...]:
    """`shape` as a tuple, once it is known to be one of a tensor of at most `max_bytes`.

    Raises:
        InputError: it is no list of at most 32 whole numbers, none negative.
        TooLargeError: the tensor has more bytes.
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > MAX_RANK:
        raise InputError(f"`{name}` has shape {_short(shape)}; give a list of at most {MAX_RANK} sizes.")
    for size in shape:
        if type(size) is not int or size < 0:
            raise InputError(f"`{name}` has size {_short(size)} in its shape; give whole numbers, none negative.")
    if math.prod(shape) * dtype.itemsize > max_bytes:
        raise TooLargeError(f"`{name}` has shape {_short(list(shape))}; a tensor may have {max_bytes} bytes here.")
    return tuple(shape)


def from_bytes(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], raw: memoryview | bytes) -> np.ndarray:
    """The tensor whose elements, row by row, are `raw`; it shares memory with `raw` where that is aligned.

    Raises:
        InputError: the number of bytes is not that of the shape, or a BOOL is neither 0 nor 1.
    """
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InputError(
            f"`{name}` has {len(raw)} bytes; {DATATYPE_OF[dtype.name]} {list(shape)} takes {expected}, "
            f"{dtype.itemsize} for each element."
        )
    if dtype.kind == "b" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise InputError(f"`{name}` is BOOL and has a byte other than 0 and 1.")
    return np.require(np.frombuffer(raw, dtype).reshape(shape), requirements="A")


def from_values(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], data: object) -> np.ndarray:
    """The tensor of `data`, numbers in a flat list or nested as `shape` says.

    Raises:
        InputError: other counts than those of the shape, or a value that the datatype does not have.
    """
    array = _numbers(name, data)
    fits = array.size == math.prod(shape) and (array.ndim == 1 or array.shape == shape)
    if not fits:
        raise InputError(
            f"`{name}` has {array.size} values in {list(array.shape)}; its shape {list(shape)} takes "
            f"{math.prod(shape)}, flat or nested like it."
        )
    if array.size and array.dtype.kind not in {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]:
        raise InputError(
            f"`{name}` has values that are not {DATATYPE_OF[dtype.name]}, such as {_short(array.flat[0])}."
        )
    return _converted(name, array, dtype).reshape(shape)


def _numbers(name: str, data: object) -> np.ndarray:
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        raise InputError(f"`{name}` has data {_short(data)}; give a list of values.")
    try:
        return np.asarray(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"`{name}` has data that is no tensor: {error}.") from None


def _converted(name: str, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if array.size and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InputError(f"`{name}` has values beyond {DATATYPE_OF[dtype.name]}, {limits.min} to {limits.max}.")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(converted[np.isfinite(array)]).all():
        raise InputError(f"`{name}` has values beyond {DATATYPE_OF[dtype.name]}.")
    return converted


def _short(value: object) -> str:
    """At most 80 characters of it: it came from a stranger."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."
