"""`Loads`: models are loaded in threads of their own, so that nothing else waits for them."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from deploy_rnn.errors import ClosedError

PARALLEL_LOADS = 2
"""Loads at a time. They measure which graph is the fastest, and would disturb each other; but one that hangs, as on a
network drive, must not hold up all others."""

POLL_SECONDS = 0.02


class Loads:
    """Loads what it is asked for: for each name one load at a time, and few at a time in all.

    Whoever asks for a name while a load of it runs gets the next load, together with all others who wait for it: that
    one reads the files as they are when it was asked for, or later.

    Thread-safe; no method but `wait` waits.

    Args:
        load: name, wanted -> loads it; called in a thread of its own. `wanted()` is False once the load has been
            given up; what came of it must then be dropped.
        parallel: loads at a time.
    """

    def __init__(
        self, load: Callable[[str, Callable[[], bool]], None], parallel: int = PARALLEL_LOADS
    ) -> None:
        self._load = load
        self._parallel = parallel
        self._lock = threading.Lock()  # guards what follows
        self._closed = False
        # In the order in which they were asked for.
        self._waiting: dict[str, Future[None]] = {}
        self._running: dict[str, Future[None]] = {}

    def __contains__(self, name: object) -> bool:
        """Whether a load of `name` waits or runs."""
        with self._lock:
            return name in self._waiting or name in self._running

    def ask(self, name: str) -> "Future[None]":
        """Load `name`; the future, which others may share and nobody can cancel, is done when it is loaded.

        It gets the error of the load, or that of `give_up` or `close`.
        """
        with self._lock:
            if self._closed:
                return _failed(ClosedError("the server is stopping and loads no more models."))
            future = self._waiting.get(name)
            if future is None:
                future = self._waiting[name] = Future()
                future.set_running_or_notify_cancel()
            self._start()
        return future

    def give_up(self, name: str, error: Exception) -> None:
        """Tell those who wait for `name` that it will not be loaded.

        A load that runs cannot be stopped; it is no longer wanted.
        """
        with self._lock:
            futures = [self._waiting.pop(name, None), self._running.get(name)]
        for future in futures:
            if future is not None:
                _fail(future, error)

    def close(self) -> None:
        """Give up all loads, and begin no more: whoever waits for one gets a ClosedError."""
        with self._lock:
            self._closed = True
            futures = [*self._waiting.values(), *self._running.values()]
            self._waiting.clear()
        for future in futures:
            _fail(future, ClosedError("the server stopped before the model was loaded."))

    def wait(self, seconds: float) -> bool:
        """Wait until no load runs, for at most `seconds`; return whether none does."""
        ends_at = time.monotonic() + seconds
        while self._running and time.monotonic() < ends_at:
            time.sleep(POLL_SECONDS)
        return not self._running

    def _start(self) -> None:
        """Start the loads that may run now; the lock is held."""
        ready = [name for name in self._waiting if name not in self._running]
        for name in ready[: self._parallel - len(self._running)]:
            future = self._waiting.pop(name)
            self._running[name] = future
            # A load that hangs must not keep the process from ending.
            thread = threading.Thread(
                target=self._run, args=(name, future), name=f"load {name}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads
                del self._running[name]
                _fail(future, error)

    def _run(self, name: str, future: "Future[None]") -> None:
        error: BaseException | None = None
        try:
            self._load(name, lambda: not future.done())
        except BaseException as raised:  # of any type: those who wait must be told
            error = raised
        give_memory_back()
        with self._lock:
            del self._running[name]
            self._start()
        if error is None:
            _succeed(future)
        else:
            _fail(future, error)


def give_memory_back() -> None:
    """Give memory that has been freed back to the system.

    The C library of Linux keeps some for every thread that had it. A hundred loads, each in a thread of its own, took
    280 MB for a model of 20 kB.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _succeed(future: "Future[None]") -> None:
    with suppress(InvalidStateError):  # those who waited have been told that it is given up
        future.set_result(None)


def _fail(future: "Future[None]", error: BaseException) -> None:
    with suppress(InvalidStateError):  # as above
        future.set_exception(error)


def _failed(error: Exception) -> "Future[None]":
    future: Future[None] = Future()
    future.set_exception(error)
    return future
