"""`Job`: a score whose arguments are checked, from its windows to its output; `ScoreReport`: what came of it."""

import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from deploy_rnn import __version__
from deploy_rnn.errors import InputError
from deploy_rnn.files import target

from .answers import OutputFormat
from .identity import file_digest, model_digest
from .options import WINDOW, Options
from .parts import Part, Parts
from .rows import Source
from .scorer import Scorer
from .standard_output import in_order
from .window import FIRST_REASONS, Done
from .worker import Setup
from .workers import Workers, in_this_process

PARTS = ".parts"
"""What the name of the folder with the parts has after that of the output."""


class Progress(NamedTuple):
    """How far a score is.

    Attributes:
        rows: that are done, with those of an earlier run that it goes on with.
        failed: how many of them have no answer.
        resumed: how many of them an earlier run has done.
        share: of the input that is done or under way, 0 to 1; None if its size is unknown.
        seconds: since it began or went on.
    """

    rows: int
    failed: int
    resumed: int
    share: float | None
    seconds: float


@dataclass(frozen=True)
class ScoreReport:
    """What came of a score.

    Attributes:
        rows: of the input.
        failed: how many of them have no answer.
        resumed: how many of them an earlier run had done.
        seconds: that this run took.
        reasons: why rows have no answer, of the first few of this run: row and reason.
    """

    rows: int
    failed: int
    resumed: int
    seconds: float
    reasons: Sequence[tuple[int, str]] = field(default=())

    def __str__(self) -> str:
        fresh = self.rows - self.resumed
        rate = fresh / self.seconds if self.seconds else 0.0
        text = f"{self.rows:,} rows in {self.seconds:.1f} s, {rate:,.0f} rows/s"
        if self.resumed:
            text += f"; {self.resumed:,} of them were done before"
        return f"{text}; {self.failed:,} failed" if self.failed else text


class Job:
    """A score.

    Args:
        options: of the score.
        source: the rows.
        answers: how the answers are written.
        processes: how many run side by side.
        progress: is called after each window.
    """

    def __init__(
        self,
        options: Options,
        source: Source,
        answers: OutputFormat,
        processes: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._options = options
        self._source = source
        self._answers = answers
        self._processes = processes
        self._progress = progress
        self._started = time.perf_counter()
        self._rows = 0
        self._failed = 0
        self._resumed = 0
        self._position = 0
        self._reasons: list[tuple[int, str]] = []

    def to_file(
        self,
        scorer: Scorer,
        input_path: Path,
        output: Path,
        errors: str | Path | None,
        restart: bool,
    ) -> ScoreReport:
        """Write the answers to a file, and go on where an earlier run has ended."""
        errors_path = None if errors is None else target(errors, "errors.jsonl")
        folder = output.with_name(output.name + PARTS)
        can_resume = input_path.is_file()
        identity = self._identity(input_path if can_resume else None)
        parts = Parts.open(
            folder, identity, self._answers.suffix, restart=restart or not can_resume
        )
        try:
            done = parts.files.done()
            self._count_done(done)
            for _ in self._run(scorer, parts, done):
                pass
            parts.join(output, errors_path, self._answers.join)
        except BaseException:
            parts.close()
            raise
        parts.remove()
        return self._report()

    def to_standard_output(self, scorer: Scorer, errors: str | Path | None) -> ScoreReport:
        """Write the answers to stdout, in their order, as soon as they are there."""
        errors_path = None if errors is None else target(errors, "errors.jsonl")
        if self._answers.name != "jsonl":
            raise InputError(
                f"only JSON lines are written to stdout, and not {self._answers.name}."
            )
        with tempfile.TemporaryDirectory(prefix="deploy-rnn-score-") as folder:
            identity = self._identity(None)
            parts = Parts.open(Path(folder) / "parts", identity, self._answers.suffix, restart=True)
            spans = (done.span for done in self._run(scorer, parts, {}))
            in_order(spans, parts.files, sys.stdout.buffer)
            if errors_path is not None:
                parts.join_errors(errors_path)
            parts.close()
        return self._report()

    def _identity(self, input_path: Path | None) -> dict[str, Any]:
        return {
            "deploy_rnn": __version__,
            "input": None if input_path is None else file_digest(input_path),
            "model": model_digest(self._options.model),
            "output_format": self._answers.name,
            **self._options.to_journal(),
        }

    def _count_done(self, done: dict[int, Part]) -> None:
        for part in done.values():
            self._resumed += part.rows
            self._rows += part.rows
            if part.errors.exists():
                self._failed += part.errors.read_bytes().count(b"\n")

    def _run(
        self, scorer: Scorer, parts: Parts, done: dict[int, Part]
    ) -> Generator[Done, None, None]:
        """Answer the windows that are not done."""
        graph = parts.journal.get("graph")
        if graph is None:
            graph = scorer.fastest_graph()
            parts.note(graph=graph)
        setup = Setup(
            replace(self._options, graph=graph),
            self._source.reader,
            self._answers,
            parts.files,
            parts.journal["model"],
        )
        rows_done = {first: part.rows for first, part in done.items()}
        window = self._options.window or WINDOW
        spans = self._source.spans(window, rows_done)
        # A process takes a second to start: not for windows that are not there.
        first_spans = list(islice(spans, self._processes))
        if first_spans:
            self._position = first_spans[0].start
        spans = chain(first_spans, spans)
        if len(first_spans) > 1:
            results = Workers(setup, self._source, len(first_spans)).run(spans)
        else:
            scorer.use_graph(graph)
            results = in_this_process(setup.work_of(scorer), parts.files, self._source, spans)
        self._tell_progress()
        with closing(results):
            for result in results:
                self._note(result)
                yield result

    def _note(self, done: Done) -> None:
        self._rows += done.span.rows
        self._failed += done.failed
        self._position = max(self._position, done.span.start + done.span.size)
        room = FIRST_REASONS - len(self._reasons)
        self._reasons += done.reasons[:room]
        self._tell_progress()

    def _tell_progress(self) -> None:
        if self._progress is not None:
            whole = self._source.size
            share = self._position / whole if whole else None
            seconds = time.perf_counter() - self._started
            self._progress(Progress(self._rows, self._failed, self._resumed, share, seconds))

    def _report(self) -> ScoreReport:
        seconds = time.perf_counter() - self._started
        reasons = tuple(sorted(self._reasons))
        return ScoreReport(self._rows, self._failed, self._resumed, seconds, reasons)
