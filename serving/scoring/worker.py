"""A process that answers windows: `python -m deploy_rnn.serving.scoring.worker`, started by `workers`.

It gets pickled messages on stdin: first a `Setup`, then windows. On stdout it says READY whenever it can take a window,
and replies `Done` when the part of one is on the disk: that takes some milliseconds, in which it computes the next one.
It ends when stdin does, so that it does not outlive its parent, however that ends.
"""

import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, BinaryIO

from deploy_rnn.errors import BundleError

from .answers import OutputFormat
from .identity import model_digest
from .options import Options
from .parts import PartFiles
from .rows import Reader
from .scorer import Scorer
from .window import Done, WindowWork

READY = "ready"
"""The reply of a process that can take a window."""


@dataclass(frozen=True)
class Setup:
    """What a process needs before its first window.

    Attributes:
        options: of the score.
        reader: makes rows of the windows.
        answers: how the answers are written.
        files: where they go.
        digest: of the model.
    """

    options: Options
    reader: Reader
    answers: OutputFormat
    files: PartFiles
    digest: str

    def make_work(self) -> WindowWork:
        """Open the model.

        Raises:
            The errors of `Scorer`; BundleError: the model is not the one that the score began with.
        """
        scorer = Scorer(self.options)
        if model_digest(self.options.model) != self.digest:
            raise BundleError(f"{self.options.model!r} has changed meanwhile; score again.")
        return self.work_of(scorer)

    def work_of(self, scorer: Scorer) -> WindowWork:
        """The work with a model that is open."""
        return WindowWork(scorer, self.reader, self.answers, self.options.kept)


def main() -> None:
    messages = sys.stdin.buffer
    # What a library prints must not get between the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lock = Lock()

    def reply(value: Any) -> None:
        with lock:
            pickle.dump(value, replies)
            replies.flush()

    try:
        setup: Setup = pickle.load(messages)
        work = setup.make_work()
        with ThreadPoolExecutor(1) as writer:
            reply(READY)
            _answer_windows(work, setup.files, messages, writer, reply)
    except EOFError:
        return
    except BrokenPipeError:
        os._exit(1)  # the parent has ended
    except Exception as error:
        reply(error)


def _answer_windows(
    work: WindowWork,
    files: PartFiles,
    messages: BinaryIO,
    writer: ThreadPoolExecutor,
    reply: Callable[[Any], None],
) -> None:
    """Answer windows until there are no more, which is an EOFError."""

    def write(answers: bytes, errors: bytes, done: Done) -> None:
        try:
            files.write(done.span.first, done.span.rows, answers, errors)
        except OSError as error:
            reply(error)
        else:
            reply(done)

    written: Future[None] | None = None
    while True:
        span, payload = pickle.load(messages)
        results = work.answer(span, payload)
        if written is not None:
            written.result()  # the answers of two windows at most are in memory
        written = writer.submit(write, *results)
        reply(READY)


if __name__ == "__main__":
    main()
