"""gzip and deflate, as in HTTP's `Content-Encoding`; the size after decompression is limited."""

import gzip
import re
import zlib

from deploy_rnn.errors import InputError, TooLargeError, UnsupportedError

# zlib's `wbits`; 16 more means a gzip header.
_WBITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}

_REFUSED = re.compile(r"\s*q=0(\.0*)?\s*", re.IGNORECASE)
"""The weight of an encoding that a client does not accept."""

MAX_RATIO = 1032
"""Bytes that one byte of deflate can become."""

# Numbers hardly compress: a higher level takes longer and gains a few percent.
_LEVEL = 1


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """
    Raises:
        UnsupportedError: the encoding is neither gzip nor deflate.
        InputError: the body is damaged or truncated.
        TooLargeError: it has more than `max_bytes` once decompressed.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _WBITS:
        raise UnsupportedError(
            f"Content-Encoding (={encoding[:40]!r}) is not supported; use gzip or deflate."
        )
    decoder = zlib.decompressobj(_WBITS[encoding])
    try:
        # One byte more than allowed shows that there are too many, without unpacking a bomb.
        decompressed = decoder.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InputError(f"the body is not {encoding}: {error}.") from None
    if len(decompressed) > max_bytes:
        raise TooLargeError(f"the body has more than {max_bytes} bytes once decompressed.")
    if not decoder.eof or decoder.unused_data:
        raise InputError(
            f"the body is not {encoding}: it is truncated, or has bytes after its end."
        )
    return decompressed


def compress(body: bytes, encoding: str) -> bytes:
    """
    Args:
        encoding: gzip or deflate.
    """
    if encoding == "gzip":
        return gzip.compress(body, _LEVEL, mtime=0)
    return zlib.compress(body, _LEVEL)


def choose_encoding(accepted: str, *, binary: bool) -> str | None:
    """The encoding of an answer: the first in `Accept-Encoding` that is supported; None for no compression.

    Many libraries send `gzip, deflate` with every request. Compressing binary tensors takes time and gains little, so
    that is done only for a client that names a single encoding, as Triton's clients do when they are told to.
    """
    encodings = []
    for item in accepted.split(","):
        encoding, _, weight = item.partition(";")
        if not _REFUSED.fullmatch(weight):
            encodings.append(encoding.strip().lower())
    if binary and len(encodings) != 1:
        return None
    return next((encoding for encoding in encodings if encoding in _WBITS), None)
