"""HTTP and gRPC, each on an event loop of its own, from the first connection to a graceful stop."""

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp

from .grpc.server import GrpcServer
from .open_files import Listener, report_rarely
from .protocol.access_log import AccessLog
from .protocol.inference import Inference
from .repository import Repository
from .rest.app import OPEN_PATHS, make_app
from .rest.connection import connection_factory
from .rest.other_sites import OwnHost, parse_hosts
from .rest.places import Places
from .settings import Settings

if TYPE_CHECKING:
    from .protocol.tracing import Tracing

try:
    import uvloop
except ModuleNotFoundError:  # on Windows there is none
    uvloop = None  # type: ignore[assignment]

BACKLOG = 2048
"""Connections that the kernel holds until the loop accepts them; uvicorn's default."""

LAST_SECONDS = 1.0
"""When the time for answers is up, those that wait are told so, for which this is enough."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop for HTTP, or for gRPC: that of uvloop, which takes half the time, where there is one."""
    if uvloop is None:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class Server:
    """Serves a repository over HTTP and gRPC.

    The repository may still be loading: until it has loaded, the server is live but not ready.

    Args:
        access_log: gets every request; None for no log.
        tracing: traces the requests; None for no traces.

    Attributes:
        http_address, grpc_address: `host:port`, once started.

    Raises:
        ValueError: a folder in `settings.pages` is not a page, or one of `settings.allowed_hosts` not a host.
    """

    http_address: str
    grpc_address: str

    def __init__(
        self,
        repository: Repository,
        settings: Settings | None = None,
        access_log: AccessLog | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._repository = repository
        self._settings = settings or Settings()
        self._access_log = access_log
        self._tracing = tracing
        self._app = make_app(repository, self._settings, tracing)
        self._stop_requested = asyncio.Event()

    async def start(self, host: str = "127.0.0.1", http_port: int = 0, grpc_port: int = 0) -> None:
        """Listen on both ports; 0 is any free one.

        Raises:
            OSError: a port is taken, or the host is not an address of this machine.
        """
        report_rarely(asyncio.get_running_loop())
        http_socket = _listen(host, http_port)
        if self._is_for_this_machine(http_socket):
            self._app = OwnHost(self._app, parse_hosts(self._settings.allowed_hosts))
        self.http_address = _address(host, http_socket.getsockname()[1])
        try:
            make_inference = self._tracing.inference if self._tracing else Inference
            inference = make_inference(self._repository, self._settings)
            self._grpc = GrpcServer(inference, self._access_log, new_event_loop)
            port = await self._grpc.start(_address(host, grpc_port))
        except BaseException:
            http_socket.close()
            raise
        self.grpc_address = _address(host, port)
        self._http = _Uvicorn(self._app, self._settings, self._access_log)
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
        seconds = self._settings.drain_seconds
        ends_at = time.monotonic() + seconds
        self._repository.drain()
        self._http.stop()
        await asyncio.gather(self._http_task, self._grpc.stop())
        # Nobody waits for what is still in a queue.
        left = max(0.0, ends_at - time.monotonic())
        await asyncio.to_thread(self._repository.close, left)


class _Uvicorn(uvicorn.Server):
    """Leaves the signals of the process alone; `Server.stop` decides when to stop, and nobody is cut off then."""

    def __init__(
        self, app: ASGIApp, settings: Settings, access_log: AccessLog | None = None
    ) -> None:
        self._places = Places(settings, set(OPEN_PATHS), access_log)
        super().__init__(_uvicorn_config(app, settings, self._places))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Begin to stop."""
        self._places.stopping = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if uvloop is None or not isinstance(asyncio.get_running_loop(), uvloop.Loop):
            await super().startup(sockets)
            return
        listeners: list[Any] = [Listener(one, self._make_connection) for one in sockets or []]
        self.servers = listeners
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in sockets or []:
            await self._accept_waiting(listener)
        await super().shutdown(sockets)
        await self._send_last_answers()

    async def _accept_waiting(self, listener: socket.socket) -> None:
        """Take the connections that clients have already made: closing the listener would reset them."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # BlockingIOError: there are no more
            for _ in range(BACKLOG):
                connection, _ = listener.accept()
                await loop.connect_accepted_socket(self._make_connection, connection)

    def _make_connection(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        connection: asyncio.Protocol = make(self.config, self.server_state, self.lifespan.state)
        return connection

    async def _send_last_answers(self) -> None:
        """Wait for the answers to those whose time was up to be on their way."""
        ends_at = time.monotonic() + LAST_SECONDS
        while self.server_state.connections and time.monotonic() < ends_at:
            await asyncio.sleep(0.02)


def _uvicorn_config(app: ASGIApp, settings: Settings, places: Places) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection_factory(places),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody looks at what they change
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )


def _listen(host: str, port: int) -> socket.socket:
    if not host:  # to a socket, this would be every address
        raise OSError(
            "`--host` is empty; must be an address of this machine, such as 127.0.0.1 or 0.0.0.0."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches off Nagle's algorithm, which delays each answer by 40 ms, only for sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Elsewhere this option lets a second server take the port.
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        listener.close()
        raise OSError(_why_not_listening(host, port, error)) from None
    return listener


def _why_not_listening(host: str, port: int, error: OSError | UnicodeError) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
        advice = "give another `--http-port`"
    else:
        advice = "`--host` must be an address of this machine, such as 127.0.0.1 or 0.0.0.0"
    return f"HTTP cannot listen on {_address(host, port)}: {reason}; {advice}."


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
