"""The command line. Only click is imported here; a subcommand loads what it needs when it is called.

Exit codes: 0 success, 1 a check failed, 2 bad usage or input, 130 Ctrl-C.
"""

import os
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from deploy_rnn import __version__
from deploy_rnn.console import CheckFailed, UsageError, step
from deploy_rnn.errors import DeployError

ELSEWHERE = {
    "check": "deploy_rnn.export.cli.check:check",
    "export": "deploy_rnn.export.cli.commands:export",
    "inspect": "deploy_rnn.export.cli.commands:inspect",
    "verify": "deploy_rnn.export.cli.commands:verify",
    "nginx": "deploy_rnn.serving.nginx.cli:nginx",
    "score": "deploy_rnn.serving.scoring.cli:score",
    "serve": "deploy_rnn.serving.cli:serve",
}
"""Subcommands of other folders, as `module:command`. These modules import only click until a command is called."""

DEMO_IS_ELSEWHERE = (
    "the demo is in the repository, not in the installed package; run: "
    "git clone https://github.com/deploy-rnn/deploy-rnn && make -C deploy-rnn demo"
)

DEMO_MODULES = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "safetensors")
"""What the demo imports besides the dependencies of deploy-rnn itself."""


class LazyGroup(click.Group):
    """A group that imports the commands of `ELSEWHERE` when they are first used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; Ctrl-C ends it with the exit code of shells, 128 + SIGINT."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deploy-rnn")
def main() -> None:
    """Take a trained recurrent PyTorch network into production."""
    # Read when onnxruntime is imported. From 1.29 on it tells its makers of each process, and keeps an id in the home.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default=Path("build/demo"), show_default=True, type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the page and the bundle (ONNX files and a report).",
)  # fmt: skip
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    show_default="off",
    help="Print the result as JSON, and nothing else.",
)
def demo(file: Path | None, output: Path, as_json: bool) -> None:
    """Highlight a Python FILE with a bidirectional RNN that is exported and verified on the spot.

    Loads the trained highlighter as a plain torch.nn.RNN model, compiles it, exports it to ONNX in three forms and
    verifies them, and highlights FILE (by default a short sample) in each of these ways.

    Example: deploy-rnn demo setup.py
    """
    started = time.perf_counter()
    _check_installed()
    with step("loading PyTorch"):
        from deploy_rnn.examples.highlight import demo as highlight
    try:
        highlight.run(file, output, as_json=as_json, started=started)
    except highlight.Unusable as error:
        raise UsageError(str(error)) from None
    except DeployError as error:
        raise CheckFailed(str(error)) from None


def _check_installed() -> None:
    """Look for what the demo imports before it begins: some of it is not imported until a minute later."""
    if find_spec("deploy_rnn.examples") is None:
        raise UsageError(DEMO_IS_ELSEWHERE)
    missing = [f"`{module}`" for module in DEMO_MODULES if find_spec(module) is None]
    if missing:
        command = "pip install -e '.[examples,onnxruntime]'"
        raise UsageError(f"the demo needs {', '.join(missing)}; run, in the repository: {command}")
