"""`deploy-rnn score`. Only click is imported here; everything else is loaded when the command runs."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy_rnn.console import UsageError, command_errors, printable
from deploy_rnn.errors import ProviderError, RunError

if TYPE_CHECKING:
    from .job import ScoreReport

ROWS_FAILED = 3
"""Exit code: the output is there, but some rows have no answer."""

FORMATS = click.Choice(["jsonl", "npz", "parquet", "arrow"])
COUNT = click.IntRange(1)
SHARE = click.FloatRange(0, 1, max_open=True)


# Options that only show a default are arguments of `score`; it is theirs.
@click.command(short_help="Answer every row of a file, on all cores.")
@click.argument("model", metavar="BUNDLE")
@click.argument("input", metavar="INPUT")
@click.option(
    "-o", "--output", required=True, metavar="OUTPUT",
    help="File of the answers, one for each row, in their order; - for stdout.",
)  # fmt: skip
@click.option(
    "--errors", show_default="none", type=click.Path(path_type=Path), metavar="FILE",
    help="File for the rows without an answer: JSON lines of row (from 0), line (from 1) and reason.",
)  # fmt: skip
@click.option(
    "--output-name", "outputs", show_default="all", multiple=True, metavar="NAME",
    help="An output to compute. May be repeated.",
)  # fmt: skip
@click.option(
    "--keep", show_default="none", multiple=True, metavar="NAME",
    help="What is copied from a row to its answer, such as an id. May be repeated.",
)  # fmt: skip
@click.option("--rows", show_default="64", type=COUNT, metavar="N", help="Rows in one run.")
@click.option(
    "--window", show_default="512 to 2048, 4096 where only rows of equal length share a run", type=COUNT, metavar="N",
    help="Rows that are sorted by length together; what is lost of work when the process is killed.",
)  # fmt: skip
@click.option(
    "--waste", show_default="0.1", type=SHARE, metavar="SHARE",
    help="Share of a run's steps that may be padding.",
)  # fmt: skip
@click.option(
    "--finite",
    is_flag=True,
    show_default="off",
    help="Refuse rows with NaN or infinity in an input.",
)
@click.option(
    "--provider", show_default="CPUExecutionProvider", metavar="PROVIDER",
    help="The onnxruntime provider, such as CUDAExecutionProvider.",
)  # fmt: skip
@click.option(
    "--precision", show_default="the only one of the model", metavar="PRECISION",
    help="Precision of the graphs, such as int8; for a bundle that has several.",
)  # fmt: skip
@click.option(
    "--processes", show_default="all cores", type=COUNT, metavar="N",
    help="How many run side by side, each on one core.",
)  # fmt: skip
@click.option(
    "--engine", show_default="local", type=click.Choice(["local", "ray"]),
    help="Where the windows are answered: by processes here, or by Ray Data on the cluster at RAY_ADDRESS.",
)  # fmt: skip
@click.option(
    "--restart", is_flag=True, show_default="off",
    help="Begin anew, and drop what an earlier run has done.",
)  # fmt: skip
@click.option("--input-format", show_default="by the name", type=FORMATS, help="Format of INPUT.")
@click.option("--output-format", show_default="by the name", type=FORMATS, help="Format of OUTPUT.")
def score(model: str, input: str, output: str, **options: Any) -> None:
    """Answer every row of INPUT with a bundle or an .onnx file, on all cores.

    A row is an object keyed by input names: a sequence without a batch axis for each input. Rows of any length are
    sorted into batches within a window. The answers, keyed by output names, are in the order of the rows.

    OUTPUT appears whole, by a move. Until then, what is done is in the folder OUTPUT.parts: after Ctrl-C, kill -9 or a
    power cut, the same command goes on from there.

    Exit codes: 0 all rows have an answer, 3 some have none (--errors says why), 1 the provider is missing or a process
    ended, 2 bad usage or input, 130 Ctrl-C.

    \b
    Example:
      deploy-rnn score bundles/tagger sentences.jsonl -o tags.jsonl --errors errors.jsonl
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    stdout = sys.stdout  # `command_errors` sends what is printed to stderr
    with command_errors(as_json=False, failed=(ProviderError, RunError)):
        try:
            from .score import score as score_file
        except ModuleNotFoundError as error:
            message = f"this needs `{error.name}`; run: pip install 'deploy-rnn[onnxruntime]'"
            raise UsageError(message) from None
        from .progress import shown_progress

        with shown_progress() as show, redirect_stdout(stdout):
            try:
                report = score_file(model, input, output, progress=show, **given)
            except KeyboardInterrupt:
                if output != "-" and input != "-":
                    click.echo(
                        f"Finished windows are in {printable(output)}.parts; the same command goes on after them, "
                        "--restart begins anew.",
                        err=True,
                    )
                raise
    click.echo(str(report), err=True)
    if report.failed:
        _show_reasons(report, given.get("errors"))
        click.get_current_context().exit(ROWS_FAILED)


def _show_reasons(report: "ScoreReport", errors: Path | None) -> None:
    """Print why rows have no answer: a few, and where all of them are."""
    if errors is not None:
        click.echo(f"Why is in {printable(str(errors))}.", err=True)
        return
    for row, reason in report.reasons:
        click.echo(f"  row {row}: {printable(reason)}", err=True)
    if len(report.reasons) < report.failed:
        click.echo("  ... --errors FILE lists all of them.", err=True)
