"""Real servers behind a real nginx, started as docs/many-processes.md says; `make nginx` has what that needs."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

SUPERVISORD = os.environ.get("SUPERVISORD", "supervisord")

SECONDS = 120
"""More than enough for anything to happen on a busy machine."""


@dataclass
class Processes:
    """Servers behind nginx.

    Attributes:
        http_address, grpc_address: nginx's.
        ports: the HTTP ports of the servers.
        log: what all of them have written.
        supervisord: the process that has started all.
    """

    http_address: str
    grpc_address: str
    ports: list[int]
    log: Path
    supervisord: "subprocess.Popen[bytes]"

    def pid(self, port: int) -> int:
        """The process of the server that listens on a port: the latest that supervisord has started."""
        started = re.findall(rf"spawned: 'server-{port}' with pid (\d+)", self.log.read_text())
        return int(started[-1])

    def kill(self, port: int) -> None:
        os.kill(self.pid(port), signal.SIGKILL)

    def is_ready(self, port: int) -> bool:
        return is_ready(f"127.0.0.1:{port}")

    def answered(self, port: int, model: str) -> int:
        """How many requests a server has answered."""
        number = self.ports.index(port)
        text = httpx.get(f"http://{self.http_address}/processes/{number}/metrics").text
        pattern = rf'requests_total{{model="{model}",outcome="success"}} (\d+)'
        counts = re.findall(pattern, text)
        return int(counts[0])


@contextmanager
def behind_nginx(
    bundles: Path, folder: Path, *options: str, processes: int = 2
) -> Iterator[Processes]:
    """Servers of `bundles` behind nginx, all of them ready; `options` are those of `deploy-rnn serve`."""
    first_port, http_port, grpc_port = free_ports(processes)
    command = [sys.executable, "-m", "deploy_rnn", "nginx", str(bundles), "-o", str(folder / "run")]
    command += ["--processes", str(processes), "--first-port", str(first_port)]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port), "--", *options]
    subprocess.run(command, check=True, timeout=SECONDS)
    log = folder / "log"
    with log.open("ab") as output:
        supervisord = subprocess.Popen(
            [SUPERVISORD, "-c", str(folder / "run" / "supervisord.conf")],
            stdout=output,
            stderr=output,
        )
    ports = list(range(first_port, first_port + processes))
    http_address, grpc_address = f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"
    started = Processes(http_address, grpc_address, ports, log, supervisord)
    try:
        wait_for(lambda: all(map(started.is_ready, ports)) and is_ready(http_address), log)
        yield started
    finally:
        supervisord.terminate()
        supervisord.wait(SECONDS)


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    ends_at = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends_at, log.read_text()
        time.sleep(0.05)


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/v2/health/ready", timeout=SECONDS).status_code == 200
    except httpx.TransportError:
        return False


def free_ports(processes: int) -> tuple[int, int, int]:
    """The first port of the processes, and two for nginx."""
    for first in range(8100, 9900, 10):
        ports = [*range(first, first + processes)]
        if all(map(is_free, [*ports, *(port + 10_000 for port in ports)])):
            break
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return first, one.getsockname()[1], other.getsockname()[1]


def is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
