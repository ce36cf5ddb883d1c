"""`deploy-rnn check`. Only click is imported here; the rest is loaded when it is called."""

import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from deploy_rnn.console import command_errors, printable, show_json, step

from .options import JSON_OPTION, WEIGHTS_OPTIONS, load, with_options, without_unset

if TYPE_CHECKING:
    from ..ways import Check, Way
    from .target import Target

WIDEST = 120
"""Longer lines are hard to read, however wide the terminal is."""


@click.command(short_help="Try every way out of PyTorch on a model, and measure those that go.")
@click.argument("target")
@with_options(WEIGHTS_OPTIONS, [JSON_OPTION])
def check(target: str, as_json: bool, **options: Any) -> None:
    """Try every way out of PyTorch on TARGET: torch.compile, a .pt2 and a .pt file, ONNX in each form, and streaming.
    Each goes, and is measured on this machine's CPU, or is refused with the reason.

    TARGET is `package.module:factory`, a function that returns `(model, args)` or `(model, args, kwargs)`; or a weights
    file, as for `deploy-rnn export`. What a way writes is compared with the model, and removed: no file is left. It
    takes about a minute, most of it in the C++ compiler.

    Exit codes: 0 every way was judged, be it refused; 2 bad usage or input.

    \b
    Example:
      deploy-rnn check mymodels:tagger
    """
    # Importing the model would leave `__pycache__` next to it.
    sys.dont_write_bytecode = True
    with command_errors(as_json=as_json):
        from ..ways import check_ways

        options = without_unset(options)
        source = load(target, options)
        result = check_ways(source.model, source.args, source.kwargs, step)
    if as_json:
        show_json(result.to_dict() | {"target": source.shown_as})
    else:
        for line in _lines(result, source, _as_given(target, options)):
            click.echo(line)


def _as_given(target: str, options: Mapping[str, Any]) -> str:
    """TARGET and the options that were given with it, as a shell takes them."""
    words = [target]
    for name, value in options.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return shlex.join(words)


def _lines(result: "Check", source: "Target", given: str) -> Iterator[str]:
    """The heading, a line for each way, and what to type next. `given`: TARGET and its options."""
    inputs = ", ".join(str(spec) for spec in result.inputs)
    yield from _wrap(f"{source.shown_as}; {inputs}")
    yield f"  {'PyTorch':<11}{'':<9}{_milliseconds(result.milliseconds)}"
    first_with: dict[str, str] = {}
    for way in result.ways:
        first = first_with.setdefault(way.message, way.name)
        repeated = not way.goes and first != way.name
        yield from _way_lines(way, f"for the reason of {first}" if repeated else way.reason)
    if any(way.name in ("native", "scan", "unrolled") and way.goes for way in result.ways):
        yield ""
        yield printable(f"Next: deploy-rnn export {given} -o model.onnx")


def _way_lines(way: "Way", reason: str) -> Iterator[str]:
    name = f"  {way.name:<11}"
    if way.milliseconds is not None:
        figures = f"{_milliseconds(way.milliseconds)}   {printable(way.sizes)}".rstrip()
        yield f"{name}{_colored('goes', 'green')}     {figures}"
        return
    # The colour's own characters have no width.
    first, *others = _wrap(f"{name}refused  {reason}", hanging=22)
    yield first.replace("refused", _colored("refused", "red"), 1)
    yield from others


def _milliseconds(value: float) -> str:
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:9.{digits}f} ms"


def _wrap(text: str, hanging: int = 2) -> list[str]:
    """Break a line at the width of the terminal; whoever reads a pipe gets it whole."""
    text = printable(text)
    if not sys.stdout.isatty():
        return [text]
    width = min(shutil.get_terminal_size().columns, WIDEST)
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * hanging,
        break_on_hyphens=False,
    )


def _colored(text: str, color: str) -> str:
    """The two colours that can be read on light and on dark; none in a pipe, or if NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return click.style(text, fg=color)
