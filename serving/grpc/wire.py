"""What a ModelInferRequest holds, seen from its bytes: protobuf makes a hundred bytes of the two of an empty input."""

from collections.abc import Iterator

from deploy_rnn.errors import InputError, TooLargeError

MAX_FIELDS = 4096
"""Inputs, outputs, parameters and what describes them; a model has some tens of inputs, and each takes about five."""

# Numbers of the fields of a ModelInferRequest.
_INPUTS = 5
_OUTPUTS = 6
_RAW_INPUT_CONTENTS = 7

# Types of fields.
_VARINT = 0
_FIXED_64 = 1
_BYTES = 2
_FIXED_32 = 5

MAX_VARINT_BYTES = 10

DAMAGED = "the message is not a ModelInferRequest: {}."


def check_size(data: bytes, max_other_bytes: int) -> None:
    """Check a ModelInferRequest before it is parsed; this takes no longer the more it holds.

    Args:
        max_other_bytes: for all that is not in `raw_input_contents`.

    Raises:
        InputError: the bytes are not those of a message.
        TooLargeError: there are more than `MAX_FIELDS` fields, or more than `max_other_bytes`.
    """
    other_bytes = len(data)
    for count, (number, start, end) in enumerate(_request_fields(data), 1):
        if count > MAX_FIELDS:
            raise TooLargeError(
                f"the request has more than {MAX_FIELDS} inputs, outputs, parameters and fields of them, which is the "
                "limit."
            )
        if number == _RAW_INPUT_CONTENTS:
            other_bytes -= end - start
    if other_bytes > max_other_bytes:
        raise TooLargeError(
            f"the request has {other_bytes} bytes beside its `raw_input_contents`; the limit is {max_other_bytes}: "
            "send tensors in `raw_input_contents`."
        )


def _request_fields(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The number of each field of a request, and where its value begins and ends.

    Each field of an input or output is one too, of the number 0.
    """
    for number, start, end in _fields(data, 0, len(data)):
        yield number, start, end
        if number in (_INPUTS, _OUTPUTS):
            for _, inner_start, inner_end in _fields(data, start, end):
                yield 0, inner_start, inner_end


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of each field of the message in data[start:end], and where its value begins and ends."""
    while start < end:
        tag, start = _varint(data, start)
        number, field_type = divmod(tag, 8)
        value_end = start
        if field_type == _VARINT:
            _, value_end = _varint(data, start)
        elif field_type == _BYTES:
            size, start = _varint(data, start)
            value_end = start + size
        elif field_type == _FIXED_64:
            value_end = start + 8
        elif field_type == _FIXED_32:
            value_end = start + 4
        else:
            raise InputError(DAMAGED.format(f"a field has type {field_type}"))
        if value_end > end:
            raise InputError(DAMAGED.format("it ends within a field"))
        yield number, start, value_end
        start = value_end


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """The number that begins at data[start], and where it ends."""
    value = 0
    for place, byte in enumerate(data[start : start + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, start + place + 1
    raise InputError(DAMAGED.format("a number has no end"))
