"""What the options of `deploy-rnn serve` mean with `--engine ray`."""

import errno
import hashlib
import os
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from deploy_rnn.bundle import MANIFEST, Manifest
from deploy_rnn.console import UsageError

from ..process import StopSignals
from ..repository import find_bundles, no_bundle
from ..scheduling.limits import Limits
from ..settings import Settings, is_loopback
from .served import Scale, Served

RAY_OPTIONS = ("replicas", "max_replicas", "target_requests", "write_config")
"""Those that are for this engine only."""

PORT_OPTIONS = ("--http-port", "--grpc-port")

SECONDS_OF_AN_EARLIER_RAY = 20.0
"""For how long the processes of a Ray that was killed may still have its ports; some seconds were seen."""

OF_PROXIES = (
    "header_seconds", "unread_seconds", "max_unread_bytes", "idle_seconds", "max_connections", "access_log",
    "stream_header",
)  # fmt: skip
"""Options of our own way of talking to clients, for which Ray's proxies have none."""

OF_ONE_PROCESS = ("refuse_restart", "max_replaced")
"""Options that would hold within a replica, but not for all together."""


def run(
    path: Path,
    host: str,
    ports: tuple[int, int],
    options: Mapping[str, Any],
    given: Collection[str],
    signals: StopSignals,
    stdout: Any,
) -> None:
    """Serve until a signal comes, or write a config file instead.

    Args:
        ports: of HTTP and gRPC.
        options: those of the command that have a value.
        given: the names of those that the user has given.

    Raises:
        UsageError: an option has no meaning here, there is no bundle, Ray is not installed, or it cannot start all.
    """
    _check(options, given, ports)
    try:
        from . import running
    except ModuleNotFoundError as error:
        raise UsageError(
            f"`--engine ray` needs `{error.name}`; run: pip install 'deploy-rnn[ray,serving,onnxruntime]'"
        ) from None
    file = options.get("write_config")
    served = make_served(path, host, options, in_file=file is not None)
    scale = _make_scale(options)
    if file is not None:
        running.write_config(file, served, scale, host, *ports)
        click.echo(f"{file}: run `serve deploy {file}` on the cluster.", file=stdout)
        return
    # On a cluster that is there, an application of ours is replaced, with its proxies.
    if not os.environ.get("RAY_ADDRESS"):
        check_ports(host, ports)
    try:
        wait_and_stop = running.start(served, scale, host, *ports, signals)
    except RuntimeError as error:
        # That is how Ray Serve says that an application cannot be deployed.
        raise UsageError(f"Ray cannot serve this: {error}") from None
    replicas = f"{scale.replicas} replicas"
    if scale.max_replicas is not None:
        replicas = f"{scale.replicas} to {scale.max_replicas} replicas"
    click.echo(
        f"{replicas} on Ray; HTTP on http://{host}:{ports[0]}, gRPC on port {ports[1]}", file=stdout
    )
    wait_and_stop()


def _check(options: Mapping[str, Any], given: Collection[str], ports: tuple[int, int]) -> None:
    for name in (*OF_PROXIES, *OF_ONE_PROCESS):
        if name in given:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"`{option}` has no meaning with `--engine ray`; leave it out.")
    if 0 in ports:
        raise UsageError("with `--engine ray`, ports must be numbers other than 0.")
    most, least = options.get("max_replicas"), options.get("replicas", 1)
    if most is not None and most < least:
        raise UsageError(f"`--max-replicas` (={most}) must be at least `--replicas` (={least}).")


def check_ports(
    host: str, ports: tuple[int, int], seconds: float = SECONDS_OF_AN_EARLIER_RAY
) -> None:
    """Check that nobody listens on the ports. Ray's proxies share a port with whoever lets them, such as those of
    another Ray on this machine: each would get some of the requests.

    Args:
        ports: of HTTP, and of gRPC, which listens on all addresses.
        seconds: for which to wait until whoever listens there has ended.

    Raises:
        UsageError: somebody listens there, or the host is not an address of this machine.
    """
    every_address = "::" if ":" in host else "0.0.0.0"
    ends_at = time.monotonic() + seconds
    for option, address, port in zip(PORT_OPTIONS, (host, every_address), ports, strict=True):
        while (error := _why_not_free(address, port)) is not None:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= ends_at:
                raise UsageError(
                    f"Ray cannot listen on port {port} of {address}: {error.strerror}; give another `{option}`, or end "
                    "what listens there."
                )
            time.sleep(0.2)


def _why_not_free(address: str, port: int) -> OSError | None:
    """Why nobody else could listen there; None if somebody could."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        if os.name == "posix":
            # Connections that have just ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error
    return None


def _make_scale(options: Mapping[str, Any]) -> Scale:
    names = {field.name for field in fields(Scale)} & options.keys()
    return Scale(**{name: options[name] for name in names})


def make_served(path: Path, host: str, options: Mapping[str, Any], *, in_file: bool) -> Served:
    """What each replica serves.

    Args:
        in_file: whether it is for a file, in which a token would be read by others.

    Raises:
        UsageError: the token would be in the file.
        BundleError: there is no bundle at `path`, or one is damaged.
    """
    settings = _fields_of(Settings, options)
    token = settings.pop("token", None)
    if token is not None:
        Settings(token=token)  # raises an error for one that no client can send
        if in_file:
            raise UsageError(
                "a token would stand in the file; leave it out, and set DEPLOY_RNN_TOKEN in the environment of every "
                "machine of the cluster."
            )
        settings["token"] = token
    return Served(
        bundles=str(path.resolve()),
        limits=_fields_of(Limits, options),
        settings=settings,
        model={"threads": 1, **_chosen(options, ("provider", "threads", "precision"))},
        local_only=is_loopback(host) and token is None,
        version=version_of(path),
    )


def _fields_of(dataclass: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are fields of a dataclass, as JSON can have them."""
    chosen = _chosen(options, [field.name for field in fields(dataclass)])
    return {name: _plain(value) for name, value in chosen.items() if value != ()}


def _chosen(options: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    skipped = (*OF_PROXIES, *OF_ONE_PROCESS)
    return {name: options[name] for name in names if name in options and name not in skipped}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value.resolve()) if isinstance(value, Path) else value


def version_of(path: Path) -> str:
    """A name for the bundles at `path` as they are now: their manifests have the digests of all other files.

    Raises:
        BundleError: there is no bundle, or one is damaged.
    """
    digest = hashlib.sha256()
    found = [bundle for _, bundle in find_bundles(path)]
    if not found:
        raise no_bundle(path)
    for bundle in found:
        file = bundle
        if bundle.is_dir():
            Manifest.read(bundle)
            file = bundle / MANIFEST
        digest.update(str(file.relative_to(path.parent)).encode(errors="surrogateescape"))
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def is_wanted(options: dict[str, Any]) -> bool:
    """Whether the options are for Ray; takes out the one that says so.

    Raises:
        UsageError: one that only Ray has is given without it.
    """
    if options.pop("engine") == "ray":
        return True
    for name in RAY_OPTIONS:
        if options.pop(name) is not None:
            raise UsageError(f"`--{name.replace('_', '-')}` needs `--engine ray`.")
    return False
