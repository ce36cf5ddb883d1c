"""What a server allows its clients, and what it shows them."""

import hmac
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from deploy_rnn.number_fields import check_numbers

MAX_TOKEN = 4096
"""Characters; with more, gRPC would refuse the metadata of some calls."""


HEADER_NAME = re.compile(r"[a-z][a-z0-9-]*(?<!-bin)")
"""gRPC has binary values in entries whose names end with `-bin`."""


@dataclass(frozen=True)
class Settings:
    """The limits of a server, its token and its pages.

    Attributes:
        max_bytes: bytes of a request's body, before and after decompression, and of one tensor.
        max_json_bytes: bytes of JSON in a request, after decompression, or in an answer: while Python reads or writes
            JSON, it does nothing else.
        header_seconds: time for the first line and the headers of an HTTP request to arrive.
        body_seconds: time for its body to arrive.
        request_seconds: time for an answer; the `timeout` of a request may shorten it.
        unread_seconds: time in which a client must have read some of an answer; 1 KiB a second is enough.
        max_unread_bytes: bytes of answers that clients have not read, all together, over HTTP and over gRPC each; with
            more, those who read less than 1 MiB a second are dropped, the slowest first.
        idle_seconds: time without a request after which a connection is closed. Triton's clients reuse idle connections
            and do not expect them to be closed; proxies commonly close theirs after 60 s, so the server waits longer.
        drain_seconds: time for accepted requests to be answered once the server is told to stop.
        max_connections: HTTP connections and requests at a time, and gRPC calls.
        token: what clients must send as `Authorization: Bearer TOKEN`; None if they need not.
        allowed_hosts: hosts, `NAME` or `NAME:PORT`, whose pages may ask, as the server's own may. A server without a
            token that listens on loopback answers requests to these hosts and to its own machine only.
        stream_header: a header, or an entry of gRPC's metadata, that must name the stream of each chunk; for a proxy
            that chooses among several servers by it. None if a chunk needs no header.
        pages: folders, each with an index.html, whose files are served to everyone at `/pages/FOLDER/`.

    Raises:
        ValueError: a number of bytes or connections that is below 1 or not whole, a time below 0, a `token` that no
            client can send, or a `stream_header` that is not the name of a header.
    """

    max_bytes: int = 64 * 2**20
    max_json_bytes: int = 2 * 2**20
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    request_seconds: float = 60.0
    unread_seconds: float = 10.0
    max_unread_bytes: int = 2**30
    idle_seconds: float = 75.0
    drain_seconds: float = 30.0
    max_connections: int = 1000
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    stream_header: str | None = None
    pages: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.token is not None:
            check_token(self.token)
        if self.stream_header is not None:
            check_header_name(self.stream_header)

    def is_authorized(self, authorization: str | bytes | None) -> bool:
        """Whether a client with this `Authorization` header may use the server."""
        if self.token is None:
            return True
        if isinstance(authorization, str):
            authorization = authorization.encode()
        scheme, _, token = (authorization or b"").strip().partition(b" ")
        # Takes equally long for any wrong token, so that it cannot be guessed piece by piece.
        is_token = hmac.compare_digest(token.strip(), self.token.encode())
        return is_token and scheme.lower() == b"bearer"


def check_header_name(name: str) -> None:
    """
    Raises:
        ValueError: it is not the name of a header that HTTP and gRPC have in common.
    """
    if not HEADER_NAME.fullmatch(name):
        raise ValueError(
            f"stream header {name!r} must be lower-case letters, digits and hyphens, such as x-session-id, "
            "and not end with -bin."
        )


def check_token(token: str) -> None:
    """
    Raises:
        ValueError: no client can send this token. The message does not have it.
    """
    if not token.strip():
        raise ValueError(
            "the token is empty; must have characters, such as those that `openssl rand -hex 32` prints."
        )
    if token != token.strip():
        raise ValueError(
            "the token begins or ends with white space, such as the end of a line; must have none there."
        )
    if not (token.isascii() and token.isprintable()):
        raise ValueError(
            "the token has characters that no header can have; must be printable ASCII."
        )
    if len(token) > MAX_TOKEN:
        raise ValueError(f"the token has {len(token)} characters; must have at most {MAX_TOKEN}.")


def is_loopback(host: str) -> bool:
    """Whether a server that listens on a host, an address or a name, can be reached from its own machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
