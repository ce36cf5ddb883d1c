"""A plain connection to a server, for tests that send bytes of their own."""

import socket

from deploy_rnn.serving.server import Server


def connect(server: Server) -> socket.socket:
    """Connect to its HTTP port."""
    host, _, port = server.http_address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)
