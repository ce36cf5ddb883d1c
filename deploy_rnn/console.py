"""What every subcommand does alike: an exit code, one line for an error, text or JSON, progress on stderr.

Exit codes: 0 fine, 1 a check failed, 2 bad usage or input.
"""

import json
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
"""The errors of a check that was made, and failed."""


@contextmanager
def command_errors(*, as_json: bool, failed: tuple[type[DeployError], ...] = CHECKS) -> Iterator[None]:
    """For the work of a subcommand: what is printed meanwhile goes to stderr, and an error becomes an exit code.

    With `as_json` stdout gets the error as JSON, with the report if there is one.

    Raises:
        Failed: for one of `failed`.
        Refused: for any other error that deploy-rnn raises, or an optional package that is missing.
    """
    try:
        with redirect_stdout(sys.stderr), _warnings_in_one_line():
            yield
    except ModuleNotFoundError as error:
        missing = f"this needs `{error.name}`; run: pip install 'deploy-rnn[export,onnxruntime]'"
        raise _format_error(UsageError, missing, as_json=as_json) from None
    except failed as error:
        raise _format_error(CheckFailed, str(error), as_json=as_json, report=getattr(error, "report", None)) from None
    except (DeployError, OSError, TypeError, ValueError) as error:
        raise _format_error(UsageError, str(error), as_json=as_json) from None


def _format_error(
    kind: type[click.ClickException], text: str, *, as_json: bool, report: Any = None
) -> click.ClickException:
    text = printable(text)
    if as_json:
        show_json({"error": text} | (json.loads(report.to_json()) if report else {}))
    return kind(text)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    told: set[str] = set()

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        if (text := printable(str(message))) not in told:
            click.echo(f"Warning: {text}", err=True)
        told.add(text)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def show_json(fields: Mapping[str, Any]) -> None:
    """One object on stdout."""
    click.echo(json.dumps(fields, indent=2, allow_nan=False))


def printable(text: str) -> str:
    """Without the characters that would command a terminal: names come from files of any origin."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


@contextmanager
def step(what: str) -> Iterator[None]:
    """A spinner and the seconds while it lasts, on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(f"{what} ...", total=None)
        yield
