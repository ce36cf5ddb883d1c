"""gRPC's framing on h2, as little of it as `benchmarks.studies.grpc_servers` needs."""

import asyncio
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

INITIAL_WINDOW = 65_535
LARGEST_WINDOW = 2**31 - 1
ANSWER_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
TRAILERS = [("grpc-status", "0")]


class EchoConnection(asyncio.Protocol):
    """Sends the message of each call back."""

    def __init__(self) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._messages: dict[int, bytes] = {}

    def connection_made(self, transport: Any) -> None:  # uvloop's is no asyncio.Transport
        self._transport = transport
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(LARGEST_WINDOW - INITIAL_WINDOW)
        transport.write(self._h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, DataReceived):
                stream = event.stream_id
                self._messages[stream] = self._messages.get(stream, b"") + event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, StreamEnded):
                self._answer(event.stream_id)
        self._transport.write(self._h2.data_to_send())

    def _answer(self, stream: int) -> None:
        self._h2.send_headers(stream, ANSWER_HEADERS)
        self._h2.send_data(stream, self._messages.pop(stream))
        self._h2.send_headers(stream, TRAILERS, end_stream=True)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EchoConnection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
