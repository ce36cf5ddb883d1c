"""Answers on stdout: each window as soon as those before it are there."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from deploy_rnn.errors import InputError, RunError

from .parts import PartFiles
from .rows import Span


def standard_output() -> BinaryIO:
    """
    Raises:
        InputError: it is closed.
    """
    if sys.stdout is None:
        raise InputError("stdout is closed; give a file as `output`.")
    return sys.stdout.buffer


def in_order(spans: Iterator[Span], files: PartFiles, output: BinaryIO) -> None:
    """Write the answers of windows that are done in any order, in the order of their rows, and drop their parts.

    Raises:
        RunError: whoever reads them, such as `head`, has left.
    """
    try:
        _write_in_order(spans, files, output)
    except BrokenPipeError:
        _drop_what_is_buffered(output)
        raise RunError("whoever reads stdout has left before all answers were written.") from None


def _drop_what_is_buffered(output: BinaryIO) -> None:
    """Otherwise the end of the process would try again to write it, and fail."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output.fileno())
        os.close(nowhere)


def _write_in_order(spans: Iterator[Span], files: PartFiles, output: BinaryIO) -> None:
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
