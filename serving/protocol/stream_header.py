"""The header in which a chunk of a stream repeats the stream's id, for a proxy in front of several processes.

A proxy does not read bodies, so it chooses the process by this header. The states of a stream are in one process, which
must see all of its chunks: were one of them sent elsewhere, the next could go on from a state that is not the last.
"""

from collections.abc import Sequence
from string import punctuation
from urllib.parse import quote

from deploy_rnn.errors import StreamError

from .tensors import shown

PLAIN = punctuation.replace("%", "")
"""Characters besides letters and digits that stand in a header as they are; others as `%` and two hexadecimal digits
for each byte of UTF-8."""


def header_value(sequence: int | str) -> str:
    """The one value of the header for a stream: two values would be two processes."""
    return quote(str(sequence), safe=PLAIN)


def check_stream_header(name: str, sequence: int | str, values: Sequence[str]) -> None:
    """
    Args:
        name: of the header; over gRPC, the key of a metadata entry.
        values: every value that the request has for it.

    Raises:
        StreamError: the header does not name the stream.
    """
    expected = header_value(sequence)
    if list(values) == [expected]:
        return
    given = ", ".join(map(shown, values)) if values else "nothing"
    raise StreamError(
        f"stream {sequence!r}: the header `{name}` (over gRPC, metadata) has {given}; must be `{name}: {expected}`. "
        "It chooses the process, and the states of a stream are in one."
    )
