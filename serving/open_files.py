"""A process that has no more files for connections: it waits until some are closed, and says so now and then."""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

REMINDER_SECONDS = 60.0
"""Between two lines of the log about it; asyncio writes a traceback for each connection that waits, every second."""

OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)

MAX_ACCEPTED = 100
"""Connections that are accepted before the event loop goes on with others."""

PAUSE_SECONDS = 1.0
"""Time until it is tried again to accept a connection."""


def report_rarely(
    loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic
) -> None:
    """Have `loop` report that it cannot accept a connection for lack of files by one line in `REMINDER_SECONDS`."""
    handle_other = loop.get_exception_handler()
    reported: float | None = None

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal reported
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in OUT_OF_FILES:
            if handle_other is not None:
                handle_other(loop, context)
            else:
                loop.default_exception_handler(context)
        elif reported is None or clock() - reported > REMINDER_SECONDS:
            reported = clock()
            logger.error(
                "connections wait: this process has as many open files as it may (ulimit -n); "
                "raise that limit, or lower --max-connections"
            )

    loop.set_exception_handler(handle)


class Listener:
    """Accepts the connections of a listening socket, for an event loop that closes those for which it has no files, as
    that of uvloop does. Here they wait, as asyncio lets them.

    Args:
        make_protocol: what each connection gets.
    """

    def __init__(
        self, listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._socket = listening
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more."""
        self._loop.remove_reader(self._socket)
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Wait for what was accepted to have its protocol."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTED):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                context = {"message": "a connection cannot be accepted", "exception": error}
                self._loop.call_exception_handler(context)
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(PAUSE_SECONDS, self._listen)
                return
            # Otherwise each answer would wait for 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            connection.setblocking(False)
            task = self._loop.create_task(
                self._loop.connect_accepted_socket(self._make_protocol, connection)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
