"""The target of a request: the path that its first line names."""

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

import httptools


class Target(NamedTuple):
    """The target of a request.

    Attributes:
        path: without its escapes.
        has_host: whether it is a whole URL.
    """

    path: str
    raw_path: bytes
    query: bytes
    has_host: bool


def parse_target(url: bytes) -> Target:
    """
    Raises:
        httptools.HttpParserInvalidURLError, AttributeError, UnicodeDecodeError: it has no path.
    """
    # A client asks for the same again and again.
    return _parse_short_target(url) if len(url) < 256 else _parse_any_target(url)


def _parse_any_target(url: bytes) -> Target:
    parsed = httptools.parse_url(url)
    path = unquote(parsed.path.decode("ascii"))
    return Target(path, parsed.path, parsed.query or b"", parsed.host is not None)


_parse_short_target = lru_cache(maxsize=1024)(_parse_any_target)
