"""The process of a server: its signals, its files, and how it ends. Nothing but the standard library is imported."""

import contextlib
import ctypes
import gc
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, Self

SIGNALS = [signal.SIGINT, signal.SIGTERM]
# What stops nginx once it has answered its requests, and some process managers send to any server.
if hasattr(signal, "SIGQUIT"):
    SIGNALS.append(signal.SIGQUIT)
# A terminal that closes; `nohup` has it ignored.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    SIGNALS.append(signal.SIGHUP)

IGNORED_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO")
    if hasattr(signal, name)
]
"""They mean nothing here, and would end the process at once, unless something in it handles them, such as a profiler.
Tools that rotate logs send the first two to any server.
"""

SAME_SECONDS = 0.1
"""Signals within this time are one: shells and programs such as `timeout` send each to a process and to its group."""

ARENAS_VARIABLE = "MALLOC_ARENA_MAX"
"""Whoever sets it has chosen how many stores of memory the C library has."""

M_ARENA_MAX = -8
"""The option of `mallopt` for it, from malloc.h."""

LEAST_ARENAS = 2

STDOUT = 1
STDERR = 2


class StopSignals:
    """The first signal asks the server to stop. A second one ends the process, as does one that comes before there is a
    server. `IGNORED_SIGNALS` do nothing. To be entered in the main thread.

    Attributes:
        received: the first signal that asked the server; None while there was none.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._stop: Callable[[], object] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Handlers of the event loop would only be called while it turns, and Windows has none.
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._handle)
        for number in IGNORED_SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, signal.SIG_IGN)
        return self

    def renew(self) -> None:
        """Handle the signals again, after a library has put its own handlers in place."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def ask(self, stop: Callable[[], object]) -> None:
        """Call `stop` at the first signal, in the main thread and between any two steps of what that does."""
        self._stop = stop

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._stop is None:
            end_by_signal(number)
        if self.received is None:
            self.received = number
            self._received_at = now
            self._stop()
        elif now - self._received_at > SAME_SECONDS:
            end_by_signal(number)


def end_by_signal(number: int) -> NoReturn:
    """End the process at once as the signal would, so that whoever has started it sees that."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    # The first process of a container survives that; the exit code is the one that a shell gives to such an end.
    os._exit(128 + number)


def end(code: int) -> NoReturn:
    """End the process at once, whatever its threads do: one may be in a load or a run that nobody can stop."""
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be closed, or None
            file.flush()
    os._exit(code)


def keep_standard_files() -> None:
    """Open those of stdin, stdout and stderr that are closed: the next file or connection would take their place, and
    what is logged would be sent to a client."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= STDERR:
        descriptor = os.dup(descriptor)
    os.close(descriptor)


def let_output_be_lost() -> None:
    """If nobody reads what is written to stdout and stderr, lose it: a full pipe would block the whole server."""
    # Besides Python's logging, onnxruntime and gRPC write there too.
    for descriptor in (STDOUT, STDERR):
        with contextlib.suppress(OSError):
            _let_be_lost(descriptor)


def _let_be_lost(descriptor: int) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        os.set_blocking(descriptor, False)
    elif stat.S_ISFIFO(mode):
        # Opened anew: other processes may write to the same pipe, and expect it to wait for its reader.
        try:
            reopened = os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
        except PermissionError:  # another user's, such as that of a container's runtime
            os.set_blocking(descriptor, False)
            return
        os.dup2(reopened, descriptor)
        os.close(reopened)


def keep_what_is_imported() -> None:
    """Have the garbage collector look no more at what has been imported: a full collection would hold up everything for
    some 50 ms, each time in vain."""
    gc.collect()
    gc.freeze()


SWITCH_SECONDS = 1e-3
"""For how long one thread runs Python code while others wait to. A run of a model has to wait so long before it begins
and before it ends, while the event loop is busy; Python's own 5 ms are longer than many a run."""


def let_threads_take_turns() -> None:
    """Let a thread that runs a model go on soon, however busy the one that talks to clients is."""
    sys.setswitchinterval(SWITCH_SECONDS)


def silence_grpc() -> None:
    """Unless the user wants it, have gRPC's core write nothing to stderr: it reports each mistake of each client."""
    # Read when grpc is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def let_threads_share_memory() -> None:
    """Have threads take memory from one store for each core, and not each from a store of its own.

    The C library of Linux has up to eight stores for each core, and gives a new thread one that is not in use. Each
    load of a model has new threads, and what those of one have freed is of no use to those of the next: a server that
    loaded again and again under load grew from 175 to 258 MB in three minutes. With two stores it stayed below 142 MB.
    """
    if sys.platform != "linux" or ARENAS_VARIABLE in os.environ:
        return
    arenas = max(LEAST_ARENAS, len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, arenas)


def allow_open_files() -> None:
    """Open as many files as the system allows: many systems start a process with fewer than it has connections."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS refuses some of the limits that it reports.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
