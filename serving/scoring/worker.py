"""A process that answers windows: `python -m deploy_rnn.serving.scoring.worker`, started by `workers`.

It gets pickled messages on stdin and answers each on stdout: first a `Setup`, then windows. It ends when stdin does, so
that it does not outlive its parent, however that ends.
"""

import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any

from deploy_rnn.errors import BundleError

from .answers import OutputFormat
from .identity import model_digest
from .options import Options
from .parts import PartFiles
from .rows import Reader
from .scorer import Scorer
from .window import WindowWork


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

    def reply(value: Any) -> None:
        pickle.dump(value, replies)
        replies.flush()

    try:
        setup: Setup = pickle.load(messages)
        work = setup.make_work()
        reply("ready")
        while True:
            span, payload = pickle.load(messages)
            reply(work.write(span, payload, setup.files))
    except EOFError:
        return
    except BrokenPipeError:
        os._exit(1)  # the parent has ended
    except Exception as error:
        reply(error)


if __name__ == "__main__":
    main()
