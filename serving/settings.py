"""What a server allows its clients, and what it shows them."""

import hmac
from dataclasses import dataclass
from pathlib import Path


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
        idle_seconds: time without a request after which a connection is closed. Triton's clients reuse idle connections
            and do not expect them to be closed; proxies commonly close theirs after 60 s, so the server waits longer.
        drain_seconds: time for accepted requests to be answered once the server is told to stop.
        max_connections: HTTP connections and requests at a time, and gRPC calls.
        token: what clients must send as `Authorization: Bearer TOKEN`; None if they need not.
        pages: folders, each with an index.html, whose files are served to everyone at `/pages/FOLDER/`.
    """

    max_bytes: int = 64 * 2**20
    max_json_bytes: int = 2 * 2**20
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    request_seconds: float = 60.0
    unread_seconds: float = 10.0
    idle_seconds: float = 75.0
    drain_seconds: float = 30.0
    max_connections: int = 1000
    token: str | None = None
    pages: tuple[Path, ...] = ()

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
