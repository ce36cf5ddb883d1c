"""What a server allows its clients."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        max_bytes: of a request's body, also once it is decompressed, and of one tensor.
        header_seconds: for the first line and the headers of an HTTP request to arrive.
        body_seconds: for its body.
        request_seconds: for an answer; a request may ask for less by its `timeout`.
        drain_seconds: for accepted requests to be answered once the server is told to stop.
        max_connections: HTTP connections and requests at a time, and gRPC calls.
        token: what clients must send as `Authorization: Bearer TOKEN`; None for nothing.
    """

    max_bytes: int = 64 * 2**20
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    request_seconds: float = 60.0
    drain_seconds: float = 30.0
    max_connections: int = 1000
    token: str | None = None
