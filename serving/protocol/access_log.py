"""`AccessLog`: a line for each request, whatever carries it."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

FORMS = ("text", "json")

STDOUT = 1

MAX_CHARACTERS = 200
"""Of a value that a client has chosen: a line then fits into what a pipe takes as a whole, or not at all."""


@dataclass
class Access:
    """A request, and what came of it.

    Attributes:
        protocol: "http" or "grpc".
        client: address and port.
        method: of HTTP; the RPC of gRPC.
        path: of HTTP, as the client has encoded it and without its query, which may hold secrets.
        model: its name; "" for none.
        status: the code of HTTP, or the name of that of gRPC.
        size: bytes of the answer, without headers.
        began: seconds, by `time.perf_counter`.
    """

    protocol: str
    client: str
    method: str
    path: str = ""
    model: str = ""
    status: int | str = ""
    size: int = 0
    began: float = field(default_factory=time.perf_counter)


current_access: ContextVar[Access | None] = ContextVar("current_access", default=None)
"""The call of gRPC that is being handled, if there is a log."""


def write_to_stdout(line: bytes) -> None:
    """Write a line; if nobody reads the pipe, the line is lost, and nothing waits."""
    # Not through `sys.stdout`: its buffer would keep parts of lines.
    with contextlib.suppress(OSError):
        os.write(STDOUT, line)


class AccessLog:
    """
    Args:
        form: one of `FORMS`.
        write: takes each line.
    """

    def __init__(self, form: str, write: Callable[[bytes], object] = write_to_stdout) -> None:
        self._write = write
        self._format = _json if form == "json" else _text

    def add(self, access: Access) -> None:
        """Write the line of a request that ends now."""
        milliseconds = (time.perf_counter() - access.began) * 1e3
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {"time": now.replace("+00:00", "Z")}
        fields |= asdict(access)
        del fields["began"]
        fields["bytes"] = fields.pop("size")
        fields["ms"] = round(milliseconds, 3)
        for name, value in fields.items():
            if isinstance(value, str):
                fields[name] = value[:MAX_CHARACTERS]
        self._write(self._format(fields).encode() + b"\n")


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields)


def _text(fields: dict[str, Any]) -> str:
    """`name=value`, with what a client could forge a line by in quotes and escaped."""
    return " ".join(f"{name}={_plain(str(value))}" for name, value in fields.items())


def _plain(value: str) -> str:
    is_plain = value.isascii() and value.isprintable() and not set(value) & set(' "\\=')
    return value if is_plain else json.dumps(value)
