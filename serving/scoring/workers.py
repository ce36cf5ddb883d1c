"""`on_cores`: windows are answered by `Workers`, processes with a core each, or `in_this_process` if there is only one.

Threads of one process would share the interpreter, and reading and writing rows takes as long as the model may.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from itertools import chain, islice
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from deploy_rnn.errors import RunError

from .parts import PartFiles
from .rows import Source, Span
from .scorer import Scorer
from .window import Done, WindowWork
from .worker import Setup


def on_cores(
    source: Source,
    processes: int,
    make_setup: Callable[[], Setup],
    scorer: Scorer,
    spans: Iterator[Span],
) -> Generator[Done, None, None]:
    """Answer windows in as many processes as there are windows, and no more than `processes`."""
    # A process takes a second to start: not for windows that are not there.
    first_spans = list(islice(spans, processes))
    spans = chain(first_spans, spans)
    if len(first_spans) > 1:
        return Workers(make_setup, source, len(first_spans)).run(spans)
    setup = make_setup()
    scorer.use_graph(setup.options.graph or 0)
    return in_this_process(setup.work_of(scorer), setup.files, source, spans)


def in_this_process(
    work: WindowWork, files: PartFiles, source: Source, spans: Iterator[Span]
) -> Generator[Done, None, None]:
    """Answer windows one after another."""
    for span in spans:
        yield work.write(span, source.fetch(span), files)


class Workers:
    """Answers windows in several processes, each fed by a thread.

    Args:
        make_setup: makes what each process gets, while the processes start.
        source: of the windows.
        count: how many processes.
    """

    def __init__(self, make_setup: Callable[[], Setup], source: Source, count: int) -> None:
        self._make_setup = make_setup
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
            setup = self._make_setup()
            for process in self._processes:
                thread = Thread(target=self._feed, args=(process, setup, spans), daemon=True)
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

    def _feed(
        self, process: "subprocess.Popen[bytes]", setup: Setup, spans: Iterator[Span]
    ) -> None:
        """Give windows to a process until there are no more."""
        window = None
        has_more = True
        under_way = 0  # windows whose part is not there yet
        try:
            _send(process, setup)
            while has_more or under_way:
                reply = _receive(process)
                if isinstance(reply, Done):
                    under_way -= 1
                    self._results.put(reply)
                    continue
                with self._lock:
                    span = None if self._is_stopped else next(spans, None)
                    payload = None if span is None else self._source.fetch(span)
                if span is None:
                    has_more = False
                else:
                    window = span
                    under_way += 1
                    _send(process, (span, payload))
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
        [sys.executable, "-P", "-m", "deploy_rnn.serving.scoring.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        **group,
    )


def _send(process: "subprocess.Popen[bytes]", message: Any) -> None:
    stdin = _pipe(process.stdin)
    pickle.dump(message, stdin, pickle.HIGHEST_PROTOCOL)
    stdin.flush()


def _receive(process: "subprocess.Popen[bytes]") -> Any:
    """Return the next reply. Raises: what the process replies that it met."""
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
