"""How far a score is, on stderr: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from .job import Progress

LINE_SECONDS = 30.0
"""Between two lines, where stderr is not a terminal."""


@contextmanager
def shown_progress() -> Iterator[Callable[[Progress], None]]:
    """A function that shows the progress that it is called with."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("opening the model ...", total=None)
        rate = Rate()

        def show(progress: Progress) -> None:
            total = None if progress.share is None else 1.0
            text = rate.describe(progress)
            bar.update(task, description=text, total=total, completed=progress.share or 0.0)

        yield show


class _Lines:
    def __init__(self) -> None:
        self._rate = Rate()
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        text = self._rate.describe(progress)
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            click.echo(text, err=True)


class Rate:
    """Puts progress into words: its rate, and the time left, as of this run."""

    def __init__(self) -> None:
        self._first: Progress | None = None

    def describe(self, progress: Progress) -> str:
        """Such as "12,288 rows, 3,021 rows/s, 41 %, 0:03:10 left"."""
        if self._first is None:
            self._first = progress
        seconds = progress.seconds - self._first.seconds
        words = [f"{progress.rows:,} rows"]
        if seconds > 0:
            words.append(f"{(progress.rows - self._first.rows) / seconds:,.0f} rows/s")
        if progress.share is not None:
            words.append(f"{progress.share:.0%}".replace("%", " %"))
            done = progress.share - (self._first.share or 0.0)
            if done > 0 and seconds > 0:
                left = seconds * (1 - progress.share) / done
                words.append(f"{_clock(left)} left")
        if progress.failed:
            words.append(f"{progress.failed:,} failed")
        return ", ".join(words)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
