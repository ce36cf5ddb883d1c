"""The process that a runtime lives in: `python -m deploy_rnn.export.runtimes.child OPENER`.

It reads pickled requests from its standard input and answers on its standard output; both ends are ours. What the
runtime prints, to either of the standard streams, goes to the standard error stream.
"""

import os
import pickle
import signal
import statistics
import sys
import time
from dataclasses import replace
from importlib import import_module
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

import numpy as np

from .opened import Feeds, Run, Source

TIMED_RUNS = 7

LEAVE_SECONDS = 2.0
"""How long a runtime may go on after the other end has gone."""

Requests = SimpleQueue[tuple[str, Any] | None]
"""What is asked, and with what; None when no more comes."""


class OpenedFile:
    """A file that is opened when it is first run; with `one_size` again for each other size.

    Args:
        opener: the module of the runtime.
        source: the file, without shapes.
        one_size: whether the runtime takes one size at a time.
    """

    def __init__(self, opener: Any, source: Source, *, one_size: bool) -> None:
        self._opener = opener
        self._source = source
        self._one_size = one_size
        self._runs: dict[Any, Run] = {}

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        outputs = self._opened_for(feeds)(feeds)
        return [np.array(output) for output in outputs]

    def milliseconds(self, feeds: Feeds) -> float:
        """The median of a few runs, after one that is not counted."""
        run = self._opened_for(feeds)
        run(feeds)
        seconds = []
        for _ in range(TIMED_RUNS):
            started = time.perf_counter()
            run(feeds)
            seconds.append(time.perf_counter() - started)
        return 1000 * statistics.median(seconds)

    def _opened_for(self, feeds: Feeds) -> Run:
        shapes = {name: array.shape for name, array in feeds.items()}
        key = tuple(shapes.items()) if self._one_size else None
        if key not in self._runs:
            source = replace(self._source, shapes=shapes) if self._one_size else self._source
            self._runs[key] = self._opener.open_file(source)
        return self._runs[key]


def read_requests(source: BinaryIO, requests: Requests) -> None:
    """Queue each request; where the other end has gone, end this process, and those that the runtime has started.

    It runs in a thread of its own, since a runtime may be at work for minutes when the other end is killed.
    """
    while True:
        try:
            requests.put(pickle.load(source))
        except (EOFError, pickle.UnpicklingError):
            break
    requests.put(None)
    time.sleep(LEAVE_SECONDS)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def answers(opener: Any, requests: Requests, replies: BinaryIO) -> None:
    """Answer each request, until there are no more."""
    opened: OpenedFile | None = None
    while (request := requests.get()) is not None:
        kind, values = request
        reply: tuple[str, Any]
        try:
            if kind == "version":
                reply = ("done", opener.version())
            elif kind == "open":
                opened = OpenedFile(opener, **values)
                reply = ("done", None)
            else:
                assert opened is not None
                reply = ("done", getattr(opened, kind)(values))
        except BaseException as error:  # some bindings raise what is not an Exception
            reply = ("failed", _described(error))
        pickle.dump(reply, replies)
        replies.flush()


def _described(error: BaseException) -> str:
    """The first line that says something, and the last, which of a nested error is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


def serve(requests: Requests, replies: BinaryIO) -> None:
    """Load the runtime, and answer until no more is asked."""
    try:
        opener = import_module(sys.argv[1])
    except Exception as error:
        pickle.dump(("failed", f"{type(error).__name__}: {error}"), replies)
        replies.flush()
        return
    pickle.dump(("done", None), replies)
    replies.flush()
    answers(opener, requests, replies)
    if hasattr(opener, "end"):
        opener.end()


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    # Runtimes print to the standard output, from C++ too.
    os.dup2(2, 1)
    requests: Requests = SimpleQueue()
    Thread(target=read_requests, args=(sys.stdin.buffer, requests), daemon=True).start()
    serve(requests, replies)
    # Without the end of the interpreter: the thread still reads, and some runtimes do not end well.
    os._exit(0)


if __name__ == "__main__":
    main()
