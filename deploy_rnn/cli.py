"""The command line. Only click is imported here; what a subcommand needs is loaded when it is called.

Exit codes: 0 fine, 1 a check failed, 2 bad usage or input.
"""

from importlib import import_module
from pathlib import Path

import click

from deploy_rnn import __version__
from deploy_rnn.console import CheckFailed, UsageError
from deploy_rnn.errors import DeployError

ELSEWHERE = {name: f"deploy_rnn.export.cli.commands:{name}" for name in ("export", "inspect", "verify")} | {
    "serve": "deploy_rnn.serving.cli:serve"
}
"""Subcommands of other folders, `module:command`; such a module too imports only click until its command is called."""


class LazyGroup(click.Group):
    """A group that also has the commands of `ELSEWHERE`, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deploy-rnn")
def main() -> None:
    """Take a trained recurrent PyTorch network into production."""


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default=Path("build/demo"), show_default=True, type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the bundle (ONNX files and a report) and the page.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")
def demo(file: Path | None, output: Path, as_json: bool) -> None:
    """Highlight a Python FILE with a bidirectional RNN, exported and checked on the spot.

    Loads the trained highlighter as a plain torch.nn.RNN model, compiles it, exports it to ONNX, checks that, and reads
    FILE (by default the demo's own source) with all three.

    Example: deploy-rnn demo setup.py
    """
    try:
        from deploy_rnn.examples.highlight import demo as highlight
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the demo needs `{error.name}`; run: pip install 'deploy-rnn[examples,onnxruntime]'"
        ) from None
    try:
        highlight.run(file, output, as_json=as_json)
    except highlight.Unusable as error:
        raise UsageError(str(error)) from None
    except DeployError as error:
        raise CheckFailed(str(error)) from None
