"""The command line. Only click is imported here; what a subcommand needs is loaded when it is called.

Exit codes: 0 fine, 1 a check failed, 2 bad usage or input.
"""

from pathlib import Path

import click

from deploy_rnn import __version__
from deploy_rnn.errors import DeployError


class Refused(click.ClickException):
    """Bad input: one line, exit code 2."""

    exit_code = 2


class Failed(click.ClickException):
    """A check that failed: one line, exit code 1."""

    exit_code = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deploy-rnn")
def main() -> None:
    """Take a trained recurrent PyTorch network into production."""


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default=Path("build/demo"), show_default=True, type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the ONNX file, the report and the page.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")
def demo(file: Path | None, output: Path, as_json: bool) -> None:
    """Highlight a Python FILE with a bidirectional RNN, exported and checked on the spot.

    Loads the trained highlighter as a plain torch.nn.RNN model, compiles it, exports it to ONNX, checks that file, and
    reads FILE (by default the demo's own source) with all three.

    Example: deploy-rnn demo setup.py
    """
    try:
        from deploy_rnn.examples.highlight import demo as highlight
    except ModuleNotFoundError as error:
        raise Refused(f"the demo needs `{error.name}`; run: pip install 'deploy-rnn[examples,onnxruntime]'") from None
    try:
        highlight.run(file, output, as_json=as_json)
    except highlight.Unusable as error:
        raise Refused(str(error)) from None
    except DeployError as error:
        raise Failed(str(error)) from None
