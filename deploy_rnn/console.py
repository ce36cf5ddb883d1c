"""What all subcommands share: exit codes, one line for an error, text or JSON, progress on stderr.

Exit codes: 0 success, 1 a check failed, 2 bad usage or input.
"""

import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import click

from deploy_rnn.errors import DeployError, ProviderError, VerificationError


class UsageError(click.ClickException):
    """Bad input: one line, exit code 2."""

    exit_code = 2


class CheckFailed(click.ClickException):
    """A check that failed: one line, exit code 1."""

    exit_code = 1


CHECKS: tuple[type[DeployError], ...] = (VerificationError, ProviderError)
"""The errors that mean that a check was made and failed."""


@contextmanager
def command_errors(
    *, as_json: bool, failed: tuple[type[DeployError], ...] = CHECKS
) -> Iterator[None]:
    """Turn the errors of a subcommand into exit codes; whatever it prints meanwhile goes to stderr.

    With `as_json` the error is also printed to stdout as JSON, together with the report if there is one.

    Raises:
        CheckFailed: for one of `failed`.
        UsageError: for any other error that deploy-rnn raises, or an optional package that is missing.
    """
    try:
        with redirect_stdout(sys.stderr), _warnings_in_one_line():
            yield
    except ModuleNotFoundError as error:
        message = f"this needs `{error.name}`; run: pip install 'deploy-rnn[export,onnxruntime]'"
        _show_error(message, as_json=as_json)
        raise UsageError(message) from None
    except failed as error:
        message = printable(in_options(str(error)))
        _show_error(message, as_json=as_json, error=error)
        raise CheckFailed(message) from None
    except (DeployError, OSError, TypeError, ValueError) as error:
        message = printable(in_options(str(error)))
        _show_error(message, as_json=as_json)
        raise UsageError(message) from None
    except (MemoryError, RuntimeError) as error:
        message = _lack(error)
        if not message:
            raise
        _show_error(message, as_json=as_json)
        raise UsageError(message) from None


def _lack(error: MemoryError | RuntimeError) -> str:
    """What the system has too little of; empty if that is not the reason of an error."""
    if isinstance(error, MemoryError):
        return "there is too little memory; give this process more (ulimit -v), or stop others."
    if str(error) == "can't start new thread":
        return (
            "the system has no room for another thread; give this process more memory (ulimit -v) or more threads "
            "(ulimit -u)."
        )
    return ""


def _show_error(message: str, *, as_json: bool, error: DeployError | None = None) -> None:
    """Print an error to stdout if that is to be JSON; click prints it to stderr in any case.

    The fields of its report come with it; of several, as of a bundle, each is one of `graphs`.
    """
    if not as_json:
        return
    fields: dict[str, Any] = {"error": message}
    report = getattr(error, "report", None)
    reports = getattr(error, "reports", ())
    if reports:
        fields["graphs"] = [json.loads(each.to_json()) for each in reports]
    elif report is not None:
        fields |= json.loads(report.to_json())
    show_json(fields)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print each warning once, without the line of code that it came from."""
    shown: set[str] = set()

    def show(message: Warning | str, *location: Any, **options: Any) -> None:
        text = printable(in_options(str(message)))
        if text not in shown:
            click.echo(f"Warning: {text}", err=True)
        shown.add(text)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def show_json(fields: Mapping[str, Any]) -> None:
    """Print one object to stdout."""
    click.echo(json.dumps(fields, indent=2, allow_nan=False))


ARGUMENTS = frozenset(
    {
        "atol", "buckets", "dynamic_shapes", "forms", "input_names", "int8_layers", "int8_products", "max_error",
        "max_nodes", "opset_version", "output_names", "precision", "provider",
        "require_provider", "row_ends", "rtol", "runtime", "sizes", "streaming", "threads",
    }
)  # fmt: skip
"""Keyword arguments that messages name, and that are options of a command by the same name."""


def in_options(text: str) -> str:
    """Return a message about keyword arguments in the words of the command that runs: its options."""
    context = click.get_current_context(silent=True)
    if context is None:
        return text
    flags = {str(option.name): option.opts[0] for option in context.command.params}
    for name in ARGUMENTS & flags.keys():
        text = text.replace(f"`{name}`", f"`{flags[name]}`").replace(
            f"`{name}=True`", f"`{flags[name]}`"
        )
    for name in ("row_ends", "runtime"):
        if name in flags:
            text = re.sub(rf"\b{name}='([\w-]+)'", rf"{flags[name]} \1", text)
    if "portable" in flags:
        text = text.replace("portable=True", flags["portable"])
    if "forms" in flags:
        text = re.sub(r"\bform='(\w+)'", rf"{flags['forms']} \1", text)
        text = text.replace("`form`", f"`{flags['forms']}`")
    return text


def printable(text: str) -> str:
    """Escape the characters that a terminal would obey: names may come from anyone's file."""
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )


@contextmanager
def step(description: str) -> Iterator[None]:
    """Show a spinner and the seconds on stderr while the block runs, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    # Loaded here, since only a terminal needs it.
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(f"{description} ...", total=None)
        yield
