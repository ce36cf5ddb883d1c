"""`deploy-rnn serve`. Only click is imported here; the rest is loaded when it is called."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy_rnn.console import UsageError, command_errors, printable

if TYPE_CHECKING:
    from .repository import Repository
    from .scheduling.served_model import ServedModel
    from .server import Server

# The name of an option (its second one, if it has two) is the field that it is passed as; what is not given keeps the
# default of the class.
LIMITS = ("max_rows", "max_queue", "max_wait", "max_waste", "max_streams", "stream_idle")
SETTINGS = ("max_bytes", "request_seconds", "drain_seconds", "max_connections", "token")


@click.command(short_help="A bundle, or a folder of bundles, answers over HTTP and gRPC.")
@click.argument("path", type=click.Path(path_type=Path), metavar="BUNDLE_OR_FOLDER")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 is every one.")
@click.option(
    "--http-port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 for any that is free."
)
@click.option(
    "--grpc-port", default=8001, show_default=True, type=click.IntRange(0, 65535), help="0 for any that is free."
)
@click.option("--provider", metavar="PROVIDER", help="The onnxruntime provider, such as CUDAExecutionProvider.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Cores that one run may use.")
@click.option(
    "--token", envvar="DEPLOY_RNN_TOKEN", show_envvar=True,
    help="What clients must send as a bearer token; better given in the environment than here.",
)  # fmt: skip
@click.option("--max-rows", type=click.IntRange(1), metavar="N", help="Rows of one run.")
@click.option("--max-queue", type=click.IntRange(1), metavar="N", help="Requests that wait; one more is refused.")
@click.option("--max-wait", type=click.FloatRange(0), metavar="SECONDS", help="How long a request waits for others.")
@click.option("--max-waste", type=click.FloatRange(0, 1), metavar="SHARE", help="Of a run that may be padding.")
@click.option("--max-streams", type=click.IntRange(1), metavar="N", help="Streams whose states are held.")
@click.option("--stream-idle", type=click.FloatRange(0), metavar="SECONDS", help="After which a stream is dropped.")
@click.option("--max-bytes", type=click.IntRange(1), metavar="N", help="Of a request's body, and of one tensor.")
@click.option("--max-connections", type=click.IntRange(1), metavar="N", help="HTTP connections, and gRPC calls.")
@click.option("--request-seconds", type=click.FloatRange(0), metavar="SECONDS", help="For an answer.")
@click.option("--drain-seconds", type=click.FloatRange(0), metavar="SECONDS", help="For accepted requests, at the end.")
def serve(path: Path, host: str, http_port: int, grpc_port: int, **options: Any) -> None:
    """Serve a bundle, an .onnx file, or every bundle in a folder, by the Open Inference Protocol v2: Triton's clients
    work unchanged, and so does plain JSON. Metrics for Prometheus are at /metrics.

    Ctrl-C or SIGTERM stops it once all that it accepted is answered.

    Exit codes: 0 stopped when told to, 1 the provider is missing, 2 bad usage, no bundle, or a port that is taken.

    \b
    Example:
      deploy-rnn serve bundles/tagger --http-port 8000 --grpc-port 8001
    """
    out = sys.stdout  # before `command_errors` sends what is printed to stderr
    with command_errors(as_json=False):
        try:
            from . import server  # noqa: F401
        except ModuleNotFoundError as error:
            missing = f"this needs `{error.name}`; run: pip install 'deploy-rnn[serving,onnxruntime]'"
            raise UsageError(missing) from None
        given = {name: value for name, value in options.items() if value is not None}
        asyncio.run(_serve(path, host, http_port, grpc_port, given, out))


async def _serve(path: Path, host: str, http_port: int, grpc_port: int, given: dict[str, Any], out: Any) -> None:
    from .server import Server
    from .settings import Settings

    repository = _repository(path, given)
    server = Server(repository, Settings(**_taken(given, SETTINGS)))
    await server.start(host, http_port, grpc_port)
    _stop_on_signals(server)
    running = asyncio.create_task(server.run())
    try:
        await asyncio.to_thread(repository.load_all)
        _announce(repository, server, out)
    except BaseException:
        server.stop()
        await running
        raise
    await running


def _stop_on_signals(server: "Server") -> None:
    """The first begins to stop; the second does what it does to any program."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        for each in signals:
            loop.remove_signal_handler(each)
        server.stop()

    for each in signals:
        loop.add_signal_handler(each, stop)


def _repository(path: Path, given: dict[str, Any]) -> "Repository":
    from .repository import Repository
    from .scheduling.limits import Limits
    from .scheduling.model import Model

    limits = Limits(**_taken(given, LIMITS))
    options = _taken(given, ("provider", "threads"))

    def make(folder: Path, name: str) -> Model:
        return Model(folder, name=name, limits=limits, **options)

    return Repository(path, make, limits)


def _announce(repository: "Repository", server: "Server", out: Any) -> None:
    for model in repository.models():
        click.echo(printable(_line(model)), file=out)
    click.echo(f"HTTP on http://{server.http_address}, gRPC on {server.grpc_address}", file=out)


def _line(model: "ServedModel") -> str:
    takes, gives = ("; ".join(map(str, specs)) for specs in (model.inputs, model.outputs))
    return f"{model.name}: {takes} -> {gives}{'; streams' if model.streaming else ''}"


def _taken(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}
