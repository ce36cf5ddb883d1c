"""The binary tensor extension of the protocol over HTTP: JSON first, the bytes of the tensors after it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from deploy_rnn.errors import InputError

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header that says how many bytes are JSON."""


def split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a body, and the bytes after it.

    Args:
        header_length: the value of `Inference-Header-Content-Length`; None if all is JSON.

    Raises:
        InputError: a length that is not one of this body, or JSON that is none, no object, or too deep.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    return parse_json(body[:length]), memoryview(body)[length:]


def _length(header: str, available: int) -> int:
    if not (header.isascii() and header.isdigit() and len(header) < 20 and int(header) <= available):
        raise InputError(
            f"{HEADER_LENGTH} (={header[:40]!r}) must be a number of at most {available}, the body's bytes."
        )
    return int(header)


def parse_json(text: bytes) -> dict[str, Any]:
    """Raises: InputError: it is not JSON, is no object, or is nested too deep."""
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise InputError("the request's JSON is nested too deep.") from None
    except ValueError as error:
        raise InputError(f"the request is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise InputError(f"the request's JSON is a {type(found).__name__}; give an object.")
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number there; send it as binary data")


class Pieces:
    """The bytes after the JSON, handed out from front to back."""

    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def take(self, name: str, size: object) -> memoryview:
        """The next `size` bytes, which are input `name`.

        Raises:
            InputError: `size` is no number of bytes, or fewer are left.
        """
        if type(size) is not int or size < 0:
            raise InputError(f"`{name}` has binary_data_size {str(size)[:40]!r}; give its number of bytes.")
        if size > len(self._rest):
            raise InputError(f"`{name}` has binary_data_size {size}, but {len(self._rest)} bytes are left in the body.")
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def finish(self) -> None:
        """Raises: InputError: bytes that no input took."""
        if self._rest:
            raise InputError(f"{len(self._rest)} bytes of the body belong to no input; set binary_data_size of each.")


def join(fields: Mapping[str, Any], pieces: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """A body of JSON and then `pieces`, and the headers that say so."""
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    if not pieces:
        return text, {"Content-Type": "application/json"}
    return b"".join((text, *pieces)), {HEADER_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}
