"""`deploy-rnn nginx`. Only click is imported here; everything else is loaded when the command runs."""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from deploy_rnn.console import UsageError, command_errors
from deploy_rnn.files import replace_file

from ..cli import PORT, serve
from ..settings import is_loopback

STREAM_HEADER = "x-session-id"
"""Ray Serve has the same."""

MAX_FIRST_PORT = 9999
FIRST_PORTS = click.IntRange(1024, MAX_FIRST_PORT)

PORT_OPTIONS = ("first_port", "http_port", "grpc_port")

CHOSEN_HERE = ("host", "http_port", "grpc_port", "stream_header")
"""Options of `deploy-rnn serve` that the processes get from this command."""

NGINX_PLACES = ("/usr/sbin/nginx", "/usr/local/sbin/nginx")
"""Debian has it there, where no ordinary user's PATH leads."""


@click.command(short_help="Write the files for several server processes behind nginx.")
@click.argument("path", type=click.Path(path_type=Path), metavar="BUNDLE_OR_FOLDER")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where nginx.conf and supervisord.conf are written; those that are there are replaced.",
)  # fmt: skip
@click.option(
    "--processes", show_default="one a core", type=click.IntRange(1, 256), metavar="N",
    help="Server processes.",
)  # fmt: skip
@click.option(
    "--host", default="127.0.0.1", show_default=True,
    help="Address that nginx listens on; 0.0.0.0 for all.",
)  # fmt: skip
@click.option("--http-port", default=8000, show_default=True, type=PORT, help="nginx's, for HTTP.")
@click.option("--grpc-port", default=8001, show_default=True, type=PORT, help="nginx's, for gRPC.")
@click.option(
    "--first-port", default=8100, show_default=True, type=FIRST_PORTS, metavar="PORT",
    help="HTTP port of the first process on 127.0.0.1, of which each next one has the next; their gRPC ports are "
    "10,000 higher.",
)  # fmt: skip
@click.argument("serve_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVE_OPTIONS]")
def nginx(path: Path, output: Path, serve_options: Sequence[str], **options: Any) -> None:
    """Write the configuration of several servers of BUNDLE_OR_FOLDER on this machine, and of the nginx in front of
    them, which keeps each stream with its process. SERVE_OPTIONS are those of `deploy-rnn serve`, for all of them.

    \b
    Example:
      deploy-rnn nginx bundles/tagger --processes 4 -o run -- --max-rows 16
      supervisord -c run/supervisord.conf
    """
    with command_errors(as_json=False):
        layout = _layout(path, output, serve_options, options)
        folder = layout.folder
        (folder / "temp").mkdir(parents=True, exist_ok=True)
        from .configuration import files

        for name, text in files(layout).items():
            replace_file(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
    click.echo(
        f"{output}: {layout.processes} processes behind nginx, for streams by {STREAM_HEADER}."
    )
    click.echo(f"Next: supervisord -c {output / 'supervisord.conf'}")
    if not Path(layout.nginx).exists():
        click.echo("nginx was not found here; install it (Debian: nginx-light).", err=True)
    if shutil.which("supervisord") is None:
        click.echo("supervisord was not found here; run: pip install supervisor", err=True)


def _layout(path: Path, output: Path, serve_options: Sequence[str], options: dict[str, Any]) -> Any:
    from ..repository import find_bundles, no_bundle
    from ..scheduling.limits import Limits
    from ..settings import Settings
    from .configuration import Layout

    if not any(find_bundles(path)):
        raise no_bundle(path)
    processes = options["processes"] or len(_cores())
    _check_ports(processes, **{name: options[name] for name in PORT_OPTIONS})
    given = _given_to_serve(path, serve_options)
    _check_reachable(options["host"], given)
    limits = _defaults(Limits) | _defaults(Settings) | given
    share = max(1, len(_cores()) // processes)
    threads = [] if "threads" in given else ["--threads", str(share)]
    serve_command = [sys.executable, "-m", "deploy_rnn", "serve", str(path.resolve())]
    return Layout(
        folder=output.resolve(),
        processes=processes,
        first_port=options["first_port"],
        host=options["host"],
        http_port=options["http_port"],
        grpc_port=options["grpc_port"],
        serve=[*serve_command, "--stream-header", STREAM_HEADER, *threads, *serve_options],
        directory=Path.cwd(),
        nginx=_program(),
        user="root" if _is_root() else None,
        header_seconds=limits["header_seconds"],
        body_seconds=limits["body_seconds"],
        answer_seconds=limits["request_seconds"],
        stream_seconds=max(limits["stream_idle"], limits["idle_seconds"]),
        idle_seconds=limits["idle_seconds"],
        drain_seconds=limits["drain_seconds"],
        max_bytes=limits["max_bytes"],
    )


def _check_ports(processes: int, first_port: int, http_port: int, grpc_port: int) -> None:
    """
    Raises:
        UsageError: a port is out of range, or two are the same.
    """
    from .configuration import GRPC_OFFSET

    highest = MAX_FIRST_PORT - processes + 1
    if first_port > highest:
        raise UsageError(
            f"`--first-port` (={first_port}) leaves no room for {processes} processes; must be at most {highest}."
        )
    ports = range(first_port, first_port + processes)
    taken = {*ports, *(port + GRPC_OFFSET for port in ports)}
    for option, port in (("--http-port", http_port), ("--grpc-port", grpc_port)):
        if port in taken or port == 0:
            raise UsageError(f"`{option}` (={port}) must be a port that no process has.")
    if http_port == grpc_port:
        raise UsageError("`--http-port` and `--grpc-port` must differ.")


def _given_to_serve(path: Path, serve_options: Sequence[str]) -> dict[str, Any]:
    """The options that are meant for `deploy-rnn serve`, as it reads them.

    Raises:
        click.UsageError: `deploy-rnn serve` would refuse them, or they are not for the user to choose.
    """
    context = serve.make_context("deploy-rnn serve", [str(path), *serve_options])
    given = {}
    for name, value in context.params.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            given[name] = value
    for name in CHOSEN_HERE:
        if name in given:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"`{option}` of the processes is chosen by this command; leave it out."
            )
    if "token" in given:
        raise UsageError(
            "`--token` would stand in a file; give `--token-file`, or DEPLOY_RNN_TOKEN to supervisord."
        )
    return given


def _check_reachable(host: str, given: dict[str, Any]) -> None:
    """
    Raises:
        UsageError: whoever asks nginx by its name would be refused by the servers, which listen to this machine only.
    """
    if {"allowed_hosts", "token_file"} & given.keys() or is_loopback(host):
        return
    if os.environ.get("DEPLOY_RNN_TOKEN"):
        return
    raise UsageError(
        f"`--host` is {host}: give the name by which clients ask, as `-- --allowed-host NAME`, or a token "
        "(`-- --token-file FILE`); the servers refuse a host that they do not know."
    )


def _defaults(dataclass: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(dataclass)}


def _cores() -> Sequence[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _program() -> str:
    """Where nginx is; where Debian has it, if it is not installed."""
    found = shutil.which("nginx")
    if found:
        return found
    return next((place for place in NGINX_PLACES if Path(place).exists()), NGINX_PLACES[0])
