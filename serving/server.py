"""HTTP and gRPC, each on an event loop of its own, from the first connection to a graceful stop."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import uvicorn
from starlette.types import ASGIApp

from .grpc.server import GrpcServer
from .protocol.inference import Inference
from .repository import Repository
from .rest.app import OPEN_PATHS, make_app
from .rest.connection import connection_factory
from .rest.other_sites import OwnHost, parse_hosts
from .settings import Settings

BACKLOG = 2048
"""Connections that the kernel holds until the loop accepts them; uvicorn's default."""


class Server:
    """Serves a repository over HTTP and gRPC.

    The repository may still be loading: until it has loaded, the server is live but not ready.

    Attributes:
        http_address, grpc_address: `host:port`, once started.

    Raises:
        ValueError: a folder in `settings.pages` is not a page, or one of `settings.allowed_hosts` not a host.
    """

    http_address: str
    grpc_address: str

    def __init__(self, repository: Repository, settings: Settings | None = None) -> None:
        self._repository = repository
        self._settings = settings or Settings()
        self._app = make_app(repository, self._settings)
        self._stop_requested = asyncio.Event()

    async def start(self, host: str = "127.0.0.1", http_port: int = 0, grpc_port: int = 0) -> None:
        """Listen on both ports; 0 is any free one.

        Raises:
            OSError: a port is taken, or the host is not an address of this machine.
        """
        http_socket = _listen(host, http_port)
        if self._is_for_this_machine(http_socket):
            self._app = OwnHost(self._app, parse_hosts(self._settings.allowed_hosts))
        self.http_address = _address(host, http_socket.getsockname()[1])
        try:
            self._grpc = GrpcServer(Inference(self._repository, self._settings))
            port = await self._grpc.start(_address(host, grpc_port))
        except BaseException:
            http_socket.close()
            raise
        self.grpc_address = _address(host, port)
        self._http = _make_uvicorn(self._app, self._settings)
        self._http_task = asyncio.create_task(self._http.serve([http_socket]))

    def _is_for_this_machine(self, listener: socket.socket) -> bool:
        """Whether whoever is on this machine may ask, and nobody else."""
        address = ip_address(listener.getsockname()[0])
        return address.is_loopback and self._settings.token is None

    def stop(self) -> None:
        """Begin to stop."""
        self._stop_requested.set()

    async def run(self) -> None:
        """Serve until `stop` is called; then answer what was accepted, for at most `drain_seconds`."""
        stop_task = asyncio.create_task(self._stop_requested.wait())
        await asyncio.wait([stop_task, self._http_task], return_when=asyncio.FIRST_COMPLETED)
        stop_task.cancel()
        await self._drain()

    async def _drain(self) -> None:
        drain_seconds = self._settings.drain_seconds
        self._repository.drain()
        self._http.should_exit = True
        await asyncio.gather(self._http_task, self._grpc.stop())
        await asyncio.to_thread(self._repository.close, drain_seconds)


class _Uvicorn(uvicorn.Server):
    """Leaves the signals of the process alone; `Server.stop` decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _make_uvicorn(app: ASGIApp, settings: Settings) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=connection_factory(settings, set(OPEN_PATHS)),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    return _Uvicorn(config)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches off Nagle's algorithm, which delays each answer by 40 ms, only for sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Elsewhere this option lets a second server take the port.
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise OSError(
            f"HTTP cannot listen on {_address(host, port)}: {reason}; give another `--http-port`."
        ) from None
    return listener


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
