"""`WindowWork`: one window from its bytes to a part, in whichever process."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from deploy_rnn.errors import InputError

from .answers import Answer, OutputFormat
from .parts import PartFiles
from .rows import Reader, Row, Span
from .scorer import Scorer


class Done(NamedTuple):
    """What came of a window.

    Attributes:
        span: the window.
        failed: how many of its rows have no answer.
        reasons: why, of the first few: row and reason.
    """

    span: Span
    failed: int
    reasons: list[tuple[int, str]]


FIRST_REASONS = 10
"""How many of a window, and of a score, are shown; all of them are in the errors file."""


class WindowWork:
    """Answers windows and encodes what came of them.

    Args:
        scorer: the model.
        reader: makes rows of them.
        answers: how the answers are written.
        kept: the names of what is copied from a row to its answer.
    """

    def __init__(
        self, scorer: Scorer, reader: Reader, answers: OutputFormat, kept: tuple[str, ...]
    ) -> None:
        self._scorer = scorer
        self._reader = reader
        self._format = answers
        self._kept = kept

    def answer(self, span: Span, payload: Any) -> tuple[bytes, bytes, Done]:
        """Answer a window: its answers, its errors, and how many there are."""
        rows = self._reader.rows(span, payload)
        if len(rows) != span.rows:
            raise InputError("the input has changed while it was read; score it again.")
        results = self._scorer.answer(rows)
        reasons = {fault.index: fault.reason for fault in results.faults}
        answers = []
        for index, (row, outputs) in enumerate(zip(rows, results.outputs, strict=True)):
            if outputs is not None:
                reason = self._format.refusal(outputs)
                if reason is not None:
                    reasons[index] = reason
                    outputs = None
            answers.append(Answer(outputs, self._kept_of(row)))
        records = []
        for index in sorted(reasons):
            records.append(_record(span.first + index, rows[index], reasons[index]))
        encoded = self._format.encode(answers)
        errors = b"".join(records)
        shown = [(span.first + index, reasons[index]) for index in sorted(reasons)[:FIRST_REASONS]]
        return encoded, errors, Done(span, len(reasons), shown)

    def write(self, span: Span, payload: Any, files: PartFiles) -> Done:
        """Answer a window, and write its part."""
        answers, errors, done = self.answer(span, payload)
        files.write(span.first, span.rows, answers, errors)
        return done

    def _kept_of(self, row: Row) -> Mapping[str, Any]:
        return {name: row.values.get(name) for name in self._kept if row.fault is None}


def _record(number: int, row: Row, reason: str) -> bytes:
    record: dict[str, Any] = {"row": number}
    if row.line is not None:
        record["line"] = row.line
    record["reason"] = reason
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
