"""What the demo shows: the coloured file, the table, and what to type next. All of it fits into 80 columns."""

import io
import itertools
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy_rnn.timing import Timing

from .labels import LABELS

STYLES = {
    "space": "", "operator": "", "name": "", "call": "color(32)", "definition": "bold color(166)",
    "keyword": "bold color(164)", "number": "color(30)", "string": "color(64)", "comment": "italic color(244)",
}  # fmt: skip
"""Label -> style. The colours are as far from white as from black, so that they can be read on both, and on paper."""

CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"} | {
    127: "\u2421"
}
"""Control characters -> visible symbols. The characters themselves would shift the colours, or command the terminal."""

WIDEST_SPREAD = 2.0
"""Runs of the same graph on the same input differ by this much only if something else takes the cores meanwhile."""


@dataclass(frozen=True)
class Result:
    """How one way of running the model did.

    Attributes:
        seconds: the time of one run.
        difference: the largest difference from torch.nn.RNN's scores.
        allowed_share: the largest difference as a share of what docs/verification.md allows; above 1 is a failure.
        labels_changed: how many characters of the file got another label.
        nodes: of the ONNX graph; None if there is none.
        missing: why it could not run; everything else is None then.
    """

    seconds: Timing | None = None
    difference: float | None = None
    allowed_share: float | None = None
    labels_changed: int | None = None
    nodes: int | None = None
    missing: str | None = None


def coloured(source: str, labels: np.ndarray) -> Text:
    """The file, each character in the style of its label."""
    text = Text(source.translate(CONTROL_PICTURES), no_wrap=False)
    label_changes = (np.flatnonzero(np.diff(labels)) + 1).tolist()
    edges = [0, *label_changes, len(source)]
    for start, end in itertools.pairwise(edges):
        text.stylize(STYLES[LABELS[labels[start]]], start, end)
    return text


def disturbance(results: Mapping[str, Result], load: float | None) -> str | None:
    """Why the times say little, in a sentence; None if nothing disturbed them.

    Args:
        results: how each way of running the model did.
        load: the processes that wanted a core, on average over the last minute; None if that is unknown.
    """
    cores = os.cpu_count() or 1
    if load is not None and load > cores:
        return (
            f"The machine is busy (load {load:.1f} on {cores} cores): no ratios, since times vary."
        )
    for name, result in results.items():
        seconds = result.seconds
        if seconds is not None and seconds.high > WIDEST_SPREAD * seconds.low:
            return f"Something else ran: no ratios, since the times of {name} vary."
    return None


def table(results: Mapping[str, Result], batch: int, *, with_speed: bool) -> Table:
    """The ways of running the model side by side.

    Args:
        results: name -> how it did.
        batch: windows in one run.
        with_speed: whether to show how many times as fast as the first each is.
    """
    columns = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    columns.add_column(f"{batch} windows in one run", no_wrap=True)
    speed = ["speed"] if with_speed else []
    for heading in ("median ms", "quartiles", *speed, "nodes", "differs by"):
        columns.add_column(heading, justify="right")
    first = next(iter(results.values())).seconds
    for name, result in results.items():
        if result.seconds is None or first is None:
            columns.add_row(name, "not run")
            continue
        seconds = result.seconds
        ratio = [f"{first.median / seconds.median:.2f}x"] if with_speed else []
        columns.add_row(
            name,
            _milliseconds(seconds.median),
            f"{_milliseconds(seconds.low)} - {_milliseconds(seconds.high)}",
            *ratio,
            "" if result.nodes is None else f"{result.nodes:,}",
            f"{result.difference:.1e}" if result.difference else "",
        )
    return columns


def describe_labels(results: Mapping[str, Result], characters: int) -> str:
    """Whether every way of running the model gave the same labels."""
    changed = {name: result.labels_changed for name, result in results.items()}
    others = [f"{count} by {name}" for name, count in changed.items() if count]
    if others:
        return (
            f"labels of {characters:,} characters, other than torch.nn.RNN's: {', '.join(others)}"
        )
    return f"every time the same {characters:,} labels"


def next_commands(folder: Path, unrolled: Path) -> list[str]:
    """Three commands that work as they stand, where the demo was started.

    Args:
        folder: where the demo wrote to.
        unrolled: the file of the unrolled graph.
    """
    program = _program()
    return [
        f"{program} serve {_quoted(unrolled.parent)} --page {_quoted(folder / 'highlighter')}",
        f"{program} inspect {_quoted(unrolled)}",
        f"{program} check --help",
    ]


def page(source: str, labels: np.ndarray) -> str:
    """The coloured file as an HTML page."""
    recorder = Console(record=True, file=io.StringIO(), width=120)
    recorder.print(coloured(source, labels))
    return recorder.export_html()


def _milliseconds(seconds: float) -> str:
    """At most four characters wide below ten seconds."""
    milliseconds = 1e3 * seconds
    return f"{milliseconds:.1f}" if milliseconds < 99.95 else f"{milliseconds:.0f}"


def _program() -> str:
    """How to type this program here: `make demo` does not put it on the PATH."""
    script = Path(sys.executable).with_name("deploy-rnn")
    on_path = shutil.which("deploy-rnn")
    if on_path and script.exists() and Path(on_path).samefile(script):
        return "deploy-rnn"
    # Not resolved: the interpreter of a virtual environment is a link to one that lacks its packages.
    if script.exists():
        return _quoted(_from_here(script))
    return f"{_quoted(_from_here(Path(sys.executable)))} -m deploy_rnn"


def _from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _quoted(path: Path) -> str:
    """As a shell needs it."""
    return shlex.quote(str(path))
