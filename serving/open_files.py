"""A process that has no more files for connections: it waits until some are closed, and says so now and then."""

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

REMINDER_SECONDS = 60.0
"""Between two lines of the log about it; asyncio writes a traceback for each connection that waits, every second."""

OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)


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
