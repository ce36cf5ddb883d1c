"""What logs and traces call the client of a call of gRPC, and what has become of the call."""

from typing import Any
from urllib.parse import unquote

import grpc


def address(peer: str) -> str:
    """Address and port of a peer, as gRPC names it: `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`."""
    return unquote(peer.partition(":")[2])


def code_name(code: Any) -> str:
    """The name of the status of a call that has not been answered; its client may have left."""
    for known in grpc.StatusCode:
        if known is not grpc.StatusCode.OK and code in (known, known.value[0]):
            return str(known.name)
    return str(grpc.StatusCode.CANCELLED.name)
