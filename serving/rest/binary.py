"""The binary tensor extension of the protocol over HTTP: a body is JSON, followed by the bytes of the tensors."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import orjson

from deploy_rnn.errors import InputError, TooLargeError

from ..protocol.tensors import shown

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header with the number of bytes that are JSON."""

MAX_DIGITS = 1000
"""Of a whole number; those of the protocol have at most 20."""


def split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """The JSON of a body, and the bytes after it.

    Args:
        header_length: the value of `Inference-Header-Content-Length`; None if the body is all JSON.

    Raises:
        InputError: a length that this body cannot have.
    """
    length = len(body)
    if header_length is not None:
        length = _parse_length(header_length, len(body))
    return body[:length], memoryview(body)[length:]


def _parse_length(header: str, body_length: int) -> int:
    # `isdigit` alone accepts the digits of other scripts; 20 digits are more than any body has.
    is_number = header.isascii() and header.isdigit() and len(header) < 20
    if not is_number or int(header) > body_length:
        start = header[:40]
        raise InputError(
            f"{HEADER_LENGTH} (={start!r}) must be a number of at most {body_length}, the body's bytes."
        )
    return int(header)


def parse_json(text: bytes, max_bytes: int) -> dict[str, Any]:
    """
    Raises:
        TooLargeError: `text` has more than `max_bytes`.
        InputError: `text` is not JSON, not an object, or nested too deeply.
    """
    if len(text) > max_bytes:
        raise TooLargeError(too_much_json("the request has more", max_bytes))
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        fields = _parse_again(text)
    if not isinstance(fields, dict):
        raise InputError(f"the request's JSON must be an object, got {shown(fields)}.")
    return fields


def _parse_again(text: bytes) -> Any:
    """What Python's parser makes of a text that the faster one refuses: mostly, it says better what is wrong."""
    if not text.strip():
        raise InputError("the request is empty; must be a JSON object.")
    try:
        return json.loads(text, parse_int=_parse_integer, parse_constant=_refuse_constant)
    except RecursionError:
        raise InputError("the request's JSON is nested too deeply.") from None
    except UnicodeDecodeError:
        raise InputError("the request is not JSON: it is not UTF-8.") from None
    except ValueError as error:
        raise InputError(f"the request is not JSON: {error}.") from None


def too_much_json(subject: str, max_bytes: int) -> str:
    """The message of a TooLargeError about JSON."""
    return f"{subject} than {max_bytes} bytes of JSON, which is the limit; use binary tensors."


def _refuse_constant(constant: str) -> NoReturn:
    """Python's parser would take NaN, Infinity and -Infinity."""
    raise ValueError(f"{constant} is not a number in JSON; send it as binary data")


def _parse_integer(digits: str) -> int:
    """Python's own refusal of long ones names a function of Python."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


class BinaryData:
    """The bytes after the JSON, taken from front to back by the inputs in their order."""

    def __init__(self, remaining: memoryview) -> None:
        self._remaining = remaining

    def take(self, name: str, size: object) -> memoryview:
        """The next `size` bytes, those of input `name`.

        Raises:
            InputError: `size` is not a number of bytes, or fewer are left.
        """
        # True is an int too.
        if type(size) is not int or size < 0:
            raise InputError(
                f"`{name}` has binary_data_size {shown(size)}; must be its number of bytes."
            )
        available = len(self._remaining)
        if size > available:
            raise InputError(
                f"`{name}` has binary_data_size {size}, but only {available} bytes are left in the body."
            )
        raw = self._remaining[:size]
        self._remaining = self._remaining[size:]
        return raw

    def finish(self) -> None:
        """
        Raises:
            InputError: bytes are left that no input took.
        """
        left = len(self._remaining)
        if left:
            raise InputError(
                f"{left} bytes of the body belong to no input; set binary_data_size of each input."
            )


def join(fields: Mapping[str, Any], binary_data: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """A body of JSON and then `binary_data`, and the headers that describe it.

    Arrays in `fields` must be finite, and contiguous.
    """
    text = orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary_data:
        return text, {"Content-Type": "application/json"}
    headers = {HEADER_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}
    return b"".join([text, *binary_data]), headers
