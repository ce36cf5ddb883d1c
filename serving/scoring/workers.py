"""`Workers`: processes that answer windows, one on each core; `in_this_process` for a single one.

Threads of one process would share the interpreter, and reading and writing rows takes as long as the model may.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from deploy_rnn.errors import RunError

from .parts import PartFiles
from .rows import Source, Span
from .window import Done, WindowWork
from .worker import Setup


def in_this_process(
    work: WindowWork, files: PartFiles, source: Source, spans: Iterator[Span]
) -> Generator[Done, None, None]:
    """Answer windows one after another."""
    for span in spans:
        yield work.write(span, source.fetch(span), files)


class Workers:
    """Answers windows in several processes, each fed by a thread.

    Args:
        setup: what each process gets.
        source: of the windows.
        count: how many processes.
    """

    def __init__(self, setup: Setup, source: Source, count: int) -> None:
        self._setup = setup
        self._source = source
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._results: SimpleQueue[Done | BaseException | None] = SimpleQueue()
        self._lock = Lock()
        self._is_stopped = False

    def run(self, spans: Iterator[Span]) -> Generator[Done, None, None]:
        """Answer windows, as they are done.

        Raises:
            The errors of `Scorer`; RunError: a process ended. The processes have ended when it raises, and when the
            iterator is closed.
        """
        threads = []
        try:
            for _ in range(self._count):
                self._processes.append(_start())
            for process in self._processes:
                thread = Thread(target=self._feed, args=(process, spans), daemon=True)
                thread.start()
                threads.append(thread)
            running = self._count
            while running:
                result = self._results.get()
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    running -= 1
                else:
                    yield result
        finally:
            self._is_stopped = True
            for process in self._processes:
                process.kill()
            for thread in threads:
                thread.join()
            for process in self._processes:
                process.wait()
                _pipe(process.stdout).close()

    def _feed(self, process: "subprocess.Popen[bytes]", spans: Iterator[Span]) -> None:
        """Give windows to a process until there are no more."""
        window = None
        try:
            _ask(process, self._setup)
            while not self._is_stopped:
                with self._lock:
                    span = next(spans, None)
                    if span is None:
                        break
                    window = span
                    payload = self._source.fetch(span)
                self._results.put(_ask(process, (span, payload)))
            self._results.put(None)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self._results.put(_ended(process, window))
        except BaseException as error:
            self._results.put(error)
        finally:
            with suppress(OSError):
                _pipe(process.stdin).close()  # it ends


def _start() -> "subprocess.Popen[bytes]":
    # It finds the same packages, however this process found them.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    # Ctrl-C is for this process, which stops the others.
    group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
    return subprocess.Popen(
        [sys.executable, "-m", "deploy_rnn.serving.scoring.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        **group,
    )


def _ask(process: "subprocess.Popen[bytes]", message: Any) -> Any:
    """Send a message, and return the reply. Raises: what the process replies that it met."""
    stdin = _pipe(process.stdin)
    pickle.dump(message, stdin, pickle.HIGHEST_PROTOCOL)
    stdin.flush()
    reply = pickle.load(_pipe(process.stdout))
    if isinstance(reply, BaseException):
        raise reply
    return reply


def _ended(process: "subprocess.Popen[bytes]", span: Span | None) -> RunError:
    code = process.wait()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    where = "while it opened the model"
    if span is not None:
        where = f"at rows {span.first} to {span.first + span.rows - 1}"
    return RunError(
        f"a process that scores ended with {how} {where}; if the system had too little memory, take fewer rows at once "
        "(`window`) or fewer processes."
    )


def _pipe(pipe: Any) -> Any:
    assert pipe is not None
    return pipe
