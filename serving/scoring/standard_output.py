"""Answers on stdout: each window as soon as those before it are there."""

from collections.abc import Iterator
from typing import BinaryIO

from .parts import PartFiles
from .rows import Span


def in_order(spans: Iterator[Span], files: PartFiles, output: BinaryIO) -> None:
    """Write the answers of windows that are done in any order, in the order of their rows, and drop their parts."""
    waiting: dict[int, Span] = {}
    row = 0
    for span in spans:
        waiting[span.first] = span
        while row in waiting:
            ready = waiting.pop(row)
            path = files.path(ready.first, ready.rows)
            output.write(path.read_bytes())
            output.flush()
            path.unlink()
            row += ready.rows
