"""`deploy-rnn serve`. Only click is imported here; everything else is loaded when the command runs."""

import asyncio
import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from deploy_rnn.console import UsageError, command_errors, printable

from . import process
from .process import StopSignals

if TYPE_CHECKING:
    from .protocol.access_log import AccessLog
    from .repository import Repository
    from .scheduling.served_model import ServedModel
    from .server import Server
    from .settings import Settings
    from .telemetry import Telemetry


class _Seconds(click.FloatRange):
    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):  # it is within any range
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


TOKEN_VARIABLE = "DEPLOY_RNN_TOKEN"

# Each of them says that traces are wanted.
TRACE_VARIABLES = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

LOAD_SECONDS = 3.0
"""Time for the loads that are under way to end, when the server cannot start."""

PORT = click.IntRange(0, 65535)
COUNT = click.IntRange(1)
THREADS = click.IntRange(1, 1024)
# The most that gRPC takes.
BYTES = click.IntRange(1, 2**31 - 1)
CONNECTIONS = click.IntRange(1, 1_000_000)
SECONDS = _Seconds(0)
# Some ten days; the clock of an event loop does not take an infinite time.
FINITE_SECONDS = _Seconds(0, 1e6)
SHARE = click.FloatRange(0, 1, max_open=True)


# Options that only show a default are fields of `Limits` or of `Settings`, or arguments of `Model`; it is theirs.
@click.command(short_help="Serve a bundle, or a folder of bundles, over HTTP and gRPC.")
@click.argument("path", type=click.Path(path_type=Path), metavar="BUNDLE_OR_FOLDER")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all."
)
@click.option(
    "--http-port", default=8000, show_default=True, type=PORT, help="0 for any free port."
)
@click.option(
    "--grpc-port", default=8001, show_default=True, type=PORT, help="0 for any free port."
)
@click.option(
    "--engine", default="process", show_default=True, type=click.Choice(["process", "ray"]),
    help="This process, or replicas on Ray Serve.",
)  # fmt: skip
@click.option("--replicas", show_default="1", type=COUNT, metavar="N", help="With Ray: replicas.")
@click.option(
    "--max-replicas", show_default="none", type=COUNT, metavar="N",
    help="With Ray: let the number of replicas follow the requests, from --replicas to this one.",
)  # fmt: skip
@click.option(
    "--target-requests", show_default="16", type=COUNT, metavar="N",
    help="With Ray and --max-replicas: requests of a replica beyond which another one is started.",
)  # fmt: skip
@click.option(
    "--write-config", show_default="none", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="With Ray: write a config file of Ray Serve for a cluster, and do not serve.",
)  # fmt: skip
@click.option(
    "--provider",
    show_default="CPUExecutionProvider",
    metavar="PROVIDER",
    help="The onnxruntime provider, such as CUDAExecutionProvider.",
)
@click.option(
    "--threads",
    show_default="all",
    type=THREADS,
    metavar="N",
    help="Cores that the models may use.",
)
@click.option(
    "--precision", show_default="the only one of a model", metavar="PRECISION",
    help="Precision of the graphs, such as int8; for bundles that have several.",
)  # fmt: skip
@click.option(
    "--token", show_default="none", envvar=TOKEN_VARIABLE, show_envvar=True,
    help="Bearer token that clients must send. Better in the environment or a file: others can see a command line.",
)  # fmt: skip
@click.option(
    "--token-file", show_default="none", type=click.Path(path_type=Path), metavar="FILE",
    help="A file with that token; the end of its line does not count.",
)  # fmt: skip
@click.option(
    "--allowed-host", "allowed_hosts", show_default="none", multiple=True, metavar="HOST[:PORT]",
    help="A host, such as a proxy's, whose pages may ask; without a token, and without --host, only such hosts and "
    "localhost are answered. May be repeated.",
)  # fmt: skip
@click.option(
    "--stream-header", show_default="none", metavar="NAME",
    help="Header, or gRPC metadata, that must name the stream of each chunk, such as x-session-id: for servers "
    "behind a proxy that chooses among them by it.",
)  # fmt: skip
@click.option(
    "--page", "pages", show_default="none", type=click.Path(path_type=Path), multiple=True, metavar="FOLDER",
    help="A folder with an index.html, served to everyone at /pages/FOLDER/. May be repeated.",
)  # fmt: skip
@click.option(
    "--max-rows",
    show_default="32",
    type=COUNT,
    metavar="N",
    help="Rows in one run; a request of more runs in pieces.",
)
@click.option(
    "--max-queue",
    show_default="1024",
    type=COUNT,
    metavar="N",
    help="Requests that wait; further ones are refused.",
)
@click.option(
    "--max-queue-bytes",
    show_default="1073741824",
    type=COUNT,
    metavar="N",
    help="Bytes of the inputs of requests that wait.",
)
@click.option(
    "--max-wait",
    show_default="0.0",
    type=SECONDS,
    metavar="SECONDS",
    help="Time that a request waits for others to join it.",
)
@click.option(
    "--max-waste",
    show_default="0.15",
    type=SHARE,
    metavar="SHARE",
    help="Share of a run's steps that may be padding.",
)
@click.option(
    "--max-steps", show_default="100000", type=COUNT, metavar="N", help="Steps in one request."
)
@click.option(
    "--max-row-steps",
    show_default="131072",
    type=COUNT,
    metavar="N",
    help="Rows times steps in one run.",
)
@click.option(
    "--max-output-bytes",
    show_default="268435456",
    type=COUNT,
    metavar="N",
    help="Bytes of the outputs of one request.",
)
@click.option(
    "--max-streams",
    show_default="4096",
    type=COUNT,
    metavar="N",
    help="Streams whose states are held.",
)
@click.option(
    "--stream-idle",
    show_default="300.0",
    type=SECONDS,
    metavar="SECONDS",
    help="Time after which an idle stream is dropped.",
)
@click.option(
    "--stream-keep",
    show_default="10.0",
    type=SECONDS,
    metavar="SECONDS",
    help="Idle time before a new stream may replace one.",
)
@click.option(
    "--refuse-restart",
    is_flag=True,
    show_default="False",
    help="Refuse to start a stream that is live; otherwise it begins anew.",
)
@click.option(
    "--max-replaced",
    show_default="2",
    type=COUNT,
    metavar="N",
    help="Replaced models that are kept for their streams, of each name.",
)
@click.option(
    "--max-bytes",
    show_default="67108864",
    type=BYTES,
    metavar="N",
    help="Bytes of a request's body, and of one tensor.",
)
@click.option(
    "--max-json-bytes",
    show_default="2097152",
    type=BYTES,
    metavar="N",
    help="Bytes of JSON in a request or an answer.",
)
@click.option(
    "--max-connections",
    show_default="1000",
    type=CONNECTIONS,
    metavar="N",
    help="HTTP connections, and gRPC calls.",
)
@click.option(
    "--header-seconds",
    show_default="10.0",
    type=FINITE_SECONDS,
    metavar="SECONDS",
    help="Time for the headers of a request to arrive.",
)
@click.option(
    "--body-seconds",
    show_default="30.0",
    type=FINITE_SECONDS,
    metavar="SECONDS",
    help="Time for the body of a request to arrive.",
)
@click.option(
    "--request-seconds",
    show_default="60.0",
    type=FINITE_SECONDS,
    metavar="SECONDS",
    help="Time for an answer.",
)
@click.option(
    "--unread-seconds",
    show_default="10.0",
    type=FINITE_SECONDS,
    metavar="SECONDS",
    help="Time in which a client must read some of its answer.",
)
@click.option(
    "--max-unread-bytes",
    show_default="1073741824",
    type=COUNT,
    metavar="N",
    help="Bytes of answers that clients have not read; with more, the slowest clients are dropped.",
)
@click.option(
    "--idle-seconds",
    show_default="75.0",
    type=FINITE_SECONDS,
    metavar="SECONDS",
    help="Time after which an unused HTTP connection is closed.",
)
@click.option(
    "--drain-seconds",
    show_default="30.0",
    type=FINITE_SECONDS,
    metavar="SECONDS",
    help="Time for accepted requests when stopping.",
)
@click.option(
    "--access-log", "access_log", show_default="off", type=click.Choice(["text", "json"]),
    help="A line on stdout for each request: time, client, method, model, status, bytes, milliseconds.",
)  # fmt: skip
@click.option(
    "--otlp-endpoint", show_default="off", metavar="URL",
    help="Where traces go, such as http://localhost:4318; OTEL_EXPORTER_OTLP_ENDPOINT and the other variables of "
    "OpenTelemetry count, too. Needs the extra `otel`.",
)  # fmt: skip
@click.option(
    "--log-level", default="warning", show_default=True,
    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
    help="What is logged on stderr. What gRPC's core has to say is not, unless the variable GRPC_VERBOSITY is set.",
)  # fmt: skip
def serve(path: Path, host: str, http_port: int, grpc_port: int, **options: Any) -> None:
    """Serve a bundle, an .onnx file, or every bundle in a folder by the Open Inference Protocol v2: Triton's clients
    work unchanged, and so does plain JSON. Metrics for Prometheus are at /metrics.

    Ctrl-C or SIGTERM stops the server once it has answered all requests that it accepted.

    Exit codes: 0 stopped by a signal, 1 the provider is missing, 2 bad usage, no bundle, or a port that is taken. A
    signal that comes before the server is ready ends it as that signal ends any program (143 in a shell for SIGTERM).

    \b
    Example:
      deploy-rnn serve bundles/tagger --http-port 8000 --grpc-port 8001
      deploy-rnn serve bundles/tagger --engine ray --replicas 4
    """
    stdout = sys.stdout  # `command_errors` sends what is printed to stderr
    with StopSignals() as signals, command_errors(as_json=False):
        process.keep_standard_files()
        process.let_output_be_lost()
        process.allow_open_files()
        process.silence_grpc()
        process.let_threads_take_turns()
        process.let_threads_share_memory()
        logging.basicConfig(level=options.pop("log_level").upper(), format=LOG_FORMAT)
        try:
            from . import server
            from .ray import command
        except ModuleNotFoundError as error:
            message = (
                f"this needs `{error.name}`; run: pip install 'deploy-rnn[serving,onnxruntime]'"
            )
            raise UsageError(message) from None
        options["token"] = _token(options["token"], options.pop("token_file"))
        on_ray = command.is_wanted(options)
        given_options = {name: value for name, value in options.items() if value is not None}
        if on_ray:
            ports = (http_port, grpc_port)
            command.run(path, host, ports, given_options, _named_options(), signals, stdout)
            process.end(0)
        repository = _make_repository(path, given_options)
        settings = _make_settings(given_options)
        addresses = (host, http_port, grpc_port)
        access_log = _make_access_log(given_options.get("access_log"))
        telemetry = _make_telemetry(given_options.get("otlp_endpoint"))
        process.keep_what_is_imported()
        with (
            _no_end_during_a_load(repository),
            asyncio.Runner(loop_factory=server.new_event_loop) as runner,
        ):
            runner.run(
                _serve(repository, settings, access_log, telemetry, addresses, signals, stdout)
            )


def _named_options() -> set[str]:
    """The names of the options that the user has given."""
    context = click.get_current_context()
    named = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {name for name in context.params if context.get_parameter_source(name) in named}


def _token(token: str | None, file: Path | None) -> str | None:
    """The token, wherever it is given; None if it is nowhere.

    Raises:
        UsageError: it is given twice.
    """
    # click takes a variable that is empty, as that of a secret which is missing, for one that is not set.
    if token is None:
        token = os.environ.get(TOKEN_VARIABLE)
    if file is None:
        return token
    if token is not None:
        raise UsageError(
            f"`--token-file` is given, and `--token` or {TOKEN_VARIABLE} too; give one."
        )
    return file.read_bytes().decode("latin-1").removesuffix("\n").removesuffix("\r")


async def _serve(
    repository: "Repository",
    settings: "Settings",
    access_log: "AccessLog | None",
    telemetry: "Telemetry | None",
    addresses: tuple[str, int, int],
    signals: StopSignals,
    stdout: Any,
) -> NoReturn:
    """Serve until a signal comes, and end the process.

    Args:
        addresses: the host, and the ports of HTTP and gRPC.
    """
    from .server import Server

    tracing = telemetry.tracing if telemetry else None
    server = Server(repository, settings, access_log, tracing)
    # Listening comes first, so that a port that is taken is known at once.
    await server.start(*addresses)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server could not start
            loop.call_soon_threadsafe(server.stop)

    signals.ask(stop)
    server_task = asyncio.create_task(server.run())
    try:
        await asyncio.to_thread(repository.load_all)
    except BaseException:
        server.stop()
        await server_task
        if signals.received is None:
            raise
        # It was never ready: that is not an end as any other.
        process.end_by_signal(signals.received)
    _announce(repository, server, stdout)
    await server_task
    if telemetry:
        await telemetry.close()
    process.end(0)


def _make_repository(path: Path, options: Mapping[str, Any]) -> "Repository":
    from .repository import Repository
    from .scheduling.core_slots import CoreSlots
    from .scheduling.limits import Limits
    from .scheduling.model import Model

    limits = Limits(**_fields_of(Limits, options))
    core_options = {name: options[name] for name in ("provider", "threads") if name in options}
    # All models share them.
    cores = CoreSlots.of(**core_options)
    precision = options.get("precision")

    def make(folder: Path, name: str) -> Model:
        return Model(
            folder, name=name, limits=limits, cores=cores, precision=precision, **core_options
        )

    return Repository(path, make, limits)


def _make_settings(options: Mapping[str, Any]) -> "Settings":
    from .settings import Settings

    return Settings(**_fields_of(Settings, options))


def _make_access_log(form: str | None) -> "AccessLog | None":
    from .protocol.access_log import AccessLog

    return AccessLog(form) if form else None


def _make_telemetry(endpoint: str | None) -> "Telemetry | None":
    """None if nobody asks for traces.

    Raises:
        UsageError: the option asks for them, and a package is missing; or the endpoint or a variable is not valid.
    """
    if not _wants_traces(endpoint):
        return None
    try:
        from .telemetry import Telemetry

        return Telemetry(os.environ, endpoint)
    except ModuleNotFoundError as error:
        reason = f"`{error.name}` is not installed; run: pip install 'deploy-rnn[otel]'"
        if endpoint is not None:
            raise UsageError(f"`--otlp-endpoint` is given, but {reason}") from None
    # A platform sets these variables for all of its programs.
    logging.getLogger(__name__).warning("no traces are sent: %s", reason)
    return None


def _wants_traces(endpoint: str | None) -> bool:
    """Whether the option or one of OpenTelemetry's variables asks for traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if endpoint is not None:
        return True
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
    return exporter != "none" and any(os.environ.get(name) for name in TRACE_VARIABLES)


@contextlib.contextmanager
def _no_end_during_a_load(repository: "Repository") -> Iterator[None]:
    """If the server cannot start, let the loads end that are under way, or end the process without them.

    They cannot be stopped, and Python's own end takes away what they run in, which aborts the process.
    """
    try:
        with command_errors(as_json=False):
            yield
    except click.ClickException as error:
        if not repository.wait_for_loads(LOAD_SECONDS):
            error.show()
            process.end(error.exit_code)
        raise


def _fields_of(dataclass: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of a dataclass."""
    return {field.name: options[field.name] for field in fields(dataclass) if field.name in options}


def _announce(repository: "Repository", server: "Server", stdout: Any) -> None:
    lines = [printable(_describe(model)) for model in repository.models()]
    lines.append(f"HTTP on http://{server.http_address}, gRPC on {server.grpc_address}")
    # Whoever has started the server need not read this.
    with contextlib.suppress(OSError):
        click.echo("\n".join(lines), file=stdout)


def _describe(model: "ServedModel") -> str:
    inputs = "; ".join(str(spec) for spec in model.inputs)
    outputs = "; ".join(str(spec) for spec in model.outputs)
    suffix = "; streams" if model.streaming else ""
    return f"{model.name} ({model.precision}): {inputs} -> {outputs}{suffix}"
