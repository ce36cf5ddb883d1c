"""gRPC on an event loop and a thread of its own.

On that of HTTP, each call would wait for several turns of the loop, and each turn serves every HTTP connection.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..protocol.access_log import AccessLog
from ..protocol.inference import Inference
from .messages import SERVICE
from .service import Service
from .unknown_methods import make_server

HEALTH_PLACES = 16
"""Calls on a connection beyond `max_connections`."""

PING_SECONDS = 30.0
"""A connection with calls on which nothing has come for so long is asked whether its client is there."""

MIN_PING_SECONDS = 10.0
"""Clients must not ask more often than that."""

IDENTITY = 1
"""The set of algorithms of compression that has only "none"."""

CLOSE_SECONDS = 1.0
"""Time for calls that nobody waits for any more to end, once the server has stopped."""

Result = TypeVar("Result")


CLIENT_FAULTS = ("ExecuteBatchError", "Invalid encoding on")
"""How grpcio begins a traceback in the log that any client can cause, with or without a token: it has left while
something was sent to it, or its metadata is not text, and is handed over as bytes."""


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of grpcio says more than that a client has made a mistake."""
    return not record.getMessage().startswith(CLIENT_FAULTS)


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)

QUIET_SECONDS = 0.5
"""Calls may be on their way when all others have ended: the server stops when none has arrived for so long."""

HOLD_SECONDS = 5.0
"""But no later than this, if clients go on to call."""


class LoopThread:
    """An event loop that runs in a thread of its own until it is closed."""

    def __init__(self, name: str, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._loop = make_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    async def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine there, and wait for it here."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Cancel what still runs, and end the thread."""
        await self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    """Cancel all other tasks of this loop, and give them a moment to end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=CLOSE_SECONDS)


class GrpcServer:
    """The server of the protocol over gRPC; its methods are called on another event loop than its own.

    Args:
        access_log: gets every call; None for no log.
        make_loop: makes its own.
    """

    def __init__(
        self,
        inference: Inference,
        access_log: AccessLog | None = None,
        make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._settings = inference.settings
        self._service = Service(inference, access_log)
        self._thread = LoopThread("deploy-rnn gRPC", make_loop)

    async def start(self, address: str) -> int:
        """Listen on `address`, and return the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        try:
            return await self._thread.run(self._start(address))
        except BaseException:
            await self._thread.close()
            raise

    async def _start(self, address: str) -> int:
        self._server = make_server(self._options())
        self._server.add_registered_method_handlers(SERVICE, self._service.handlers())
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(f"gRPC cannot listen on {address}; give another `--grpc-port`.") from None
        await self._server.start()
        return port

    def _options(self) -> list[tuple[str, int]]:
        settings = self._settings
        return [
            # Otherwise two servers would share the port, and each would get some of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_bytes),
            ("grpc.max_send_message_length", -1),
            # A message of 60 kB would be inflated to 60 MB before anything of it can be refused.
            ("grpc.compression_enabled_algorithms_bitset", IDENTITY),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
            # Of one connection; beyond `max_connections`, only calls about health are answered.
            ("grpc.max_concurrent_streams", settings.max_connections + HEALTH_PLACES),
            # A connection that does not say that it speaks HTTP/2, and one without a call.
            ("grpc.server_handshake_timeout_ms", _milliseconds(settings.header_seconds)),
            ("grpc.max_connection_idle_ms", _milliseconds(settings.idle_seconds)),
            # Pings find clients that have gone without a word; by default gRPC would send only two.
            ("grpc.keepalive_time_ms", _milliseconds(PING_SECONDS)),
            ("grpc.keepalive_timeout_ms", _milliseconds(settings.unread_seconds)),
            ("grpc.http2.max_pings_without_data", 0),
            # Clients may do so too; by default gRPC drops those that ping more than every five minutes.
            ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(MIN_PING_SECONDS)),
        ]

    async def stop(self) -> None:
        """Answer the calls that were accepted, for at most `drain_seconds`; refuse others, and then stop."""
        await self._thread.run(self._stop())
        await self._thread.close()

    async def _stop(self) -> None:
        self._service.drain()
        await self._service.drained(self._settings.drain_seconds)
        self._service.hold()
        await self._service.quiet(QUIET_SECONDS, HOLD_SECONDS)
        stop_task = asyncio.create_task(self._server.stop(1))
        await asyncio.sleep(0)  # from here on, gRPC takes no more calls
        self._service.release()
        await stop_task


def _milliseconds(seconds: float) -> int:
    """At least 1, and at most what gRPC takes."""
    return round(min(max(seconds * 1000, 1), 2**31 - 1))
