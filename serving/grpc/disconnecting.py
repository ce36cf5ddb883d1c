"""A connection is ended against its client's will.

gRPC has no call for that: the socket is found among the open files of the process.
"""

import contextlib
import os
import socket
from pathlib import Path
from urllib.parse import unquote

OPEN_FILES = (Path("/proc/self/fd"), Path("/dev/fd"))
"""Where Linux and macOS list them; Windows does not."""


def disconnect(peer: str) -> None:
    """End the connection from `peer`, as gRPC writes it: `ipv4:127.0.0.1:50123`, `ipv6:%5B::1%5D:50123`."""
    address = unquote(peer).partition(":")[2]
    for folder in OPEN_FILES:
        if folder.is_dir():
            # There may be no file left to read the folder with.
            with contextlib.suppress(OSError):
                for file in folder.iterdir():
                    _shut_down(int(file.name), address)
            return


def _shut_down(file: int, address: str) -> None:
    """Shut down what `file` is, if it is a socket that is connected with `address`."""
    # None may be left for the copy; it may have been closed since; and most are no sockets.
    with contextlib.suppress(OSError):
        copy = os.dup(file)
        try:
            connection = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            return
        with connection:
            if _written(connection.getpeername()) == address:
                connection.shutdown(socket.SHUT_RDWR)


def _written(address: object) -> str:
    """An address of a socket as gRPC writes it; "" for one that is not of TCP."""
    if not isinstance(address, tuple):
        return ""
    host, port = address[:2]
    host = host.removeprefix("::ffff:")  # IPv4 on a socket of IPv6
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
