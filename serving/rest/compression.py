"""gzip and deflate, as HTTP's `Content-Encoding` names them; what is decompressed is bounded."""

import gzip
import zlib

from deploy_rnn.errors import InputError, TooLargeError, UnsupportedError

# zlib's `wbits`: 16 more for a gzip header.
_WBITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}

# Numbers hardly compress; more effort than the least costs time and gains a few percent.
_LEVEL = 1


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """
    Raises:
        UnsupportedError: another encoding.
        InputError: the body is damaged or cut off.
        TooLargeError: it has more than `max_bytes` once decompressed.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _WBITS:
        raise UnsupportedError(f"Content-Encoding (={encoding[:40]!r}) is unknown; use gzip or deflate.")
    decoder = zlib.decompressobj(_WBITS[encoding])
    try:
        found = decoder.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InputError(f"the body is not {encoding}: {error}.") from None
    if len(found) > max_bytes:
        raise TooLargeError(f"the body has more than {max_bytes} bytes once decompressed.")
    if not decoder.eof or decoder.unused_data:
        raise InputError(f"the body is not {encoding}: it is cut off, or has bytes after its end.")
    return found


def compress(body: bytes, encoding: str) -> bytes:
    """`encoding`: one that `chosen` returned."""
    return gzip.compress(body, _LEVEL, mtime=0) if encoding == "gzip" else zlib.compress(body, _LEVEL)


def chosen(accepted: str, *, binary: bool) -> str | None:
    """The encoding for an answer, of those in `Accept-Encoding`.

    Many libraries send `gzip, deflate` with every request. Binary tensors are compressed, which costs time and gains
    little, only for a client that names one encoding, as Triton's clients do when they are told to.
    """
    named = [each.partition(";")[0].strip().lower() for each in accepted.split(",") if "q=0" not in each.split()]
    if binary and len(named) != 1:
        return None
    return next((each for each in named if each in _WBITS), None)
