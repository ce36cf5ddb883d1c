"""Both protocols on one asyncio loop, from the first connection to a graceful stop."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import grpc
import uvicorn

from .grpc.service import Service
from .repository import Repository
from .rest.app import make_app
from .rest.header_limits import limited_to
from .settings import Settings

# Triton's clients keep connections for later and do not expect them to be closed; proxies commonly wait 60 s.
KEEP_ALIVE_SECONDS = 75

BACKLOG = 2048
"""Connections that the kernel holds until the loop takes them, as in uvicorn."""


class Server:
    """Serves a repository over HTTP and gRPC.

    The repository may still be loading: the server then is live, and not ready.

    Attributes:
        http_address, grpc_address: `host:port`, once started.
    """

    http_address: str
    grpc_address: str

    def __init__(self, repository: Repository, settings: Settings | None = None) -> None:
        self._repository, self._settings = repository, settings or Settings()
        self._service = Service(repository, self._settings)
        self._stop = asyncio.Event()

    async def start(self, host: str = "127.0.0.1", http_port: int = 0, grpc_port: int = 0) -> None:
        """Listen on both ports; 0 is any that is free.

        Raises:
            OSError: a port is taken, or the host is none of this machine.
        """
        listening = _listen(host, http_port)
        self.http_address = _address(host, listening.getsockname()[1])
        try:
            await self._start_grpc(host, grpc_port)
        except BaseException:
            listening.close()
            raise
        self._http = _uvicorn(self._repository, self._settings)
        self._http_task = asyncio.create_task(self._http.serve([listening]))

    async def _start_grpc(self, host: str, port: int) -> None:
        self._grpc = grpc.aio.server(
            maximum_concurrent_rpcs=self._settings.max_connections,
            options=[
                ("grpc.so_reuseport", 0),  # a second server on a port is an error, not a lottery
                ("grpc.max_receive_message_length", self._settings.max_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self._grpc.add_generic_rpc_handlers((self._service.handler(),))
        try:
            bound = self._grpc.add_insecure_port(_address(host, port))
        except RuntimeError:
            raise OSError(f"gRPC cannot listen on {_address(host, port)}; give another `--grpc-port`.") from None
        self.grpc_address = _address(host, bound)
        await self._grpc.start()

    def stop(self) -> None:
        """Begin to stop."""
        self._stop.set()

    async def run(self) -> None:
        """Until `stop` is called; then answer what has been accepted, for at most `drain_seconds`."""
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait([stopping, self._http_task], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await self._drain()

    async def _drain(self) -> None:
        self._repository.drain()
        self._service.drain()
        self._http.should_exit = True
        await asyncio.gather(self._http_task, self._grpc.stop(self._settings.drain_seconds))
        await asyncio.to_thread(self._repository.close, self._settings.drain_seconds)


class _Uvicorn(uvicorn.Server):
    """Leaves the signals of the process alone: `Server` is told when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn(repository: Repository, settings: Settings) -> uvicorn.Server:
    config = uvicorn.Config(
        make_app(repository, settings),
        http=limited_to(settings.header_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    return _Uvicorn(config)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only of a socket that says it is TCP does asyncio switch Nagle's algorithm off, which costs 40 ms an answer.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        reason = error.strerror or str(error)
        raise OSError(f"HTTP cannot listen on {_address(host, port)}: {reason}; give another `--http-port`.") from None
    return found


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
