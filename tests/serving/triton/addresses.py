"""Where a server is reached."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Addresses:
    """Of a server: host and port, for each protocol."""

    http: str
    grpc: str
