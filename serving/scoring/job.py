"""`Job`: a score whose arguments are checked, from its windows to its output; `ScoreReport`: what came of it."""

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from deploy_rnn import __version__
from deploy_rnn.errors import InputError
from deploy_rnn.files import target

from .answers import OutputFormat
from .identity import file_digest, model_digest
from .options import WINDOW, Options
from .parts import Part, Parts
from .rows import Source, Span
from .scorer import Scorer
from .standard_output import in_order, standard_output
from .window import FIRST_REASONS, Done
from .worker import Setup

PARTS = ".parts"
"""What the name of the folder with the parts has after that of the output."""


RunWindows = Callable[[Callable[[], Setup], Scorer, Iterator[Span]], Generator[Done, None, None]]
"""Answers windows with a setup that is made, or with the scorer in this process, and tells of each that is done."""


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
        run_windows: answers windows and writes their parts.
        progress: is called after each window.
    """

    def __init__(
        self,
        options: Options,
        source: Source,
        answers: OutputFormat,
        run_windows: "RunWindows",
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._options = options
        self._source = source
        self._answers = answers
        self._run_windows = run_windows
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
        parts = Parts.open(folder, identity, self._answers.suffix, restart=restart)
        try:
            done = parts.files.done()
            self._count_done(done)
            with closing(self._run(scorer, parts, done)) as results:
                for _ in results:
                    pass
            parts.join(output, errors_path, self._answers.join)
        except BaseException:
            if can_resume:
                parts.close()
            else:
                parts.remove()
            raise
        parts.remove()
        return self._report()

    def to_standard_output(self, scorer: Scorer, errors: str | Path | None) -> ScoreReport:
        """Write the answers to stdout, in their order, as soon as they are there."""
        output = standard_output()
        errors_path = None if errors is None else target(errors, "errors.jsonl")
        if self._answers.name != "jsonl":
            raise InputError(
                f"only JSON lines are written to stdout, and not {self._answers.name}."
            )
        with tempfile.TemporaryDirectory(prefix="deploy-rnn-score-") as folder:
            identity = self._identity(None)
            parts = Parts.open(Path(folder) / "parts", identity, self._answers.suffix, restart=True)
            # The processes end with the results, whatever happens to stdout.
            with closing(parts), closing(self._run(scorer, parts, {})) as results:
                spans = (done.span for done in results)
                in_order(spans, parts.files, output)
                if errors_path is not None:
                    parts.join_errors(errors_path)
        return self._report()

    def _identity(self, input_path: Path | None) -> dict[str, Any]:
        return {
            "deploy_rnn": __version__,
            # What cannot be read twice is another input each time.
            "input": f"a stream, {uuid4()}" if input_path is None else file_digest(input_path),
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

        def make_setup() -> Setup:
            graph = parts.journal.get("graph")
            if graph is None:
                graph = scorer.fastest_graph()
                parts.note(graph=graph)
            options = replace(self._options, graph=graph)
            digest = parts.journal["model"]
            return Setup(options, self._source.reader, self._answers, parts.files, digest)

        rows_done = {first: part.rows for first, part in done.items()}
        window = self._options.window or WINDOW
        spans: Iterator[Span] = self._source.spans(window, rows_done)
        for first_span in islice(spans, 1):
            self._position = first_span.start
            spans = chain([first_span], spans)
        self._tell_progress()
        with closing(self._run_windows(make_setup, scorer, spans)) as results:
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
