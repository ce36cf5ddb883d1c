"""The servers that are compared, each in processes of its own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks import ROOT
from benchmarks.serving.triton import VENV, Installation, write_models

DEPLOY_RNN = "deploy-rnn serve"
TRITON = "Triton, Python backend"
PLAIN = "Starlette, one `session.run` per request"
SKETCH = "a sketch without checks and limits"
PROTOCOLS = ("http", "grpc")
START_SECONDS = 60.0
STOP_SECONDS = 10.0


class MissingError(Exception):
    """A contestant cannot run on this machine, and why."""


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        ports: protocol -> port.
        session: the process id of its first process; all others are in the same session.
    """

    ports: dict[str, int]
    session: int

    def cpu_seconds(self) -> float:
        """What all its processes have taken so far, in user and kernel mode."""
        processes = Path("/proc").glob("[0-9]*")
        ticks = sum(_cpu_ticks(process, self.session) for process in processes)
        return ticks / os.sysconf("SC_CLK_TCK")

    def core_wait_seconds(self) -> float:
        """For how long its threads could have computed so far, and had no core, those of all threads added up."""
        processes = Path("/proc").glob("[0-9]*")
        return 1e-9 * sum(_core_wait(process, self.session) for process in processes)


def _cpu_ticks(folder: Path, session: int) -> int:
    """Of a process and those of its children that have ended; 0 if it is of another session."""
    fields = _stat(folder)
    is_of_session = bool(fields) and int(fields[3]) == session
    return sum(map(int, fields[11:15])) if is_of_session else 0


def _core_wait(folder: Path, session: int) -> int:
    """Nanoseconds of the threads of a process; 0 if it is of another session."""
    fields = _stat(folder)
    if not fields or int(fields[3]) != session:
        return 0
    total = 0
    for file in folder.glob("task/*/schedstat"):
        try:
            total += int(file.read_text().split()[1])
        except OSError:  # the thread has just ended
            continue
    return total


def _stat(folder: Path) -> list[str]:
    """The numbers of a process; empty if it has just ended."""
    try:
        text = (folder / "stat").read_text()
    except OSError:
        return []
    # The name of the program stands in parentheses, and may have blanks.
    return text.rpartition(")")[2].split()


@contextmanager
def _session(
    command: Sequence[str], environment: dict[str, str] | None = None, folder: Path = ROOT
) -> Iterator["subprocess.Popen[str]"]:
    """Run a server in a session of its own, in a folder; end all its processes."""
    with (
        TemporaryFile() as log,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        except MissingError as error:
            log.seek(0)
            last_line = log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise MissingError(": ".join([str(error), *last_line])) from None
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _printing_ports(command: Sequence[str], folder: Path = ROOT) -> Iterator[Running]:
    """Run a server that says on stdout where it listens."""
    with _session(command, folder=folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            ports = re.findall(r"(HTTP|gRPC) on (?:http://)?[\w.]+:(\d+)", line)
            if ports:
                yield Running({name.lower(): int(port) for name, port in ports}, process.pid)
                return
        raise MissingError(f"{command[2]} has ended at its start")


@contextmanager
def run_deploy_rnn(
    bundles: Sequence[Path], options: Sequence[str] = (), checkout: Path = ROOT
) -> Iterator[Running]:
    """Run this server, or that of another checkout, which has an environment in `.venv`."""
    python = sys.executable if checkout == ROOT else str(checkout / ".venv/bin/python")
    with TemporaryDirectory() as folder:
        for bundle in bundles:
            (Path(folder) / bundle.name).symlink_to(bundle)
        command = [python, "-m", "deploy_rnn", "serve", folder, *options]
        command += ["--http-port", "0", "--grpc-port", "0"]
        with _printing_ports(command, checkout) as running:
            yield running


@contextmanager
def run_behind_nginx(bundles: Sequence[Path], processes: int) -> Iterator[Running]:
    """So many servers behind nginx, as `deploy-rnn nginx` has supervisord start them."""
    supervisord = os.environ.get("SUPERVISORD") or shutil.which("supervisord")
    if supervisord is None:
        raise MissingError("supervisord is not installed; `make nginx` does that")
    ports = {"http": _free_port(), "grpc": _free_port()}
    with TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        for bundle in bundles:
            (models / bundle.name).symlink_to(bundle)
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "deploy_rnn", "nginx", str(models), "-o", str(run)]
        command += ["--processes", str(processes), "--first-port", str(8100 + 100 * processes)]
        command += ["--http-port", str(ports["http"]), "--grpc-port", str(ports["grpc"])]
        subprocess.run(command, check=True, capture_output=True)
        with _session([supervisord, "-c", str(run / "supervisord.conf")]) as process:
            _wait_until_ready(process, ports["http"])
            yield Running(ports, process.pid)


@contextmanager
def run_plain(bundles: Sequence[Path]) -> Iterator[Running]:
    command = [sys.executable, "-m", "benchmarks.serving.plain_server", *map(str, bundles)]
    with _printing_ports(command) as running:
        yield running


@contextmanager
def run_sketch(bundles: Sequence[Path]) -> Iterator[Running]:
    command = [sys.executable, "-m", "benchmarks.serving.sketch_server", *map(str, bundles)]
    with _printing_ports(command) as running:
        yield running


@contextmanager
def run_triton(bundles: Sequence[Path]) -> Iterator[Running]:
    with TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        write_models(repository, bundles)
        with run_triton_on(repository) as running:
            yield running


@contextmanager
def run_triton_on(repository: Path, venv: Path = VENV) -> Iterator[Running]:
    """Run the Triton of an environment with all models of a repository, whose path must not have a space."""
    installation = open_triton(venv)
    ports = {"http": _free_port(), "grpc": _free_port()}
    with TemporaryDirectory() as folder:
        backends = Path(folder) / "backends"
        command = installation.command(repository, backends, ports["http"], ports["grpc"])
        # Not in the checkout, whose folders Python would take for the packages of these names.
        with _session(command, installation.environment, Path(folder)) as process:
            _wait_until_ready(process, ports["http"])
            yield Running(ports, process.pid)


def open_triton(venv: Path = VENV) -> Installation:
    try:
        return Installation(ROOT / venv)
    except FileNotFoundError as error:
        raise MissingError(str(error)) from None


def triton_versions() -> dict[str, str]:
    """Of the wheel, and of the onnxruntime in its environment; empty if Triton is missing."""
    try:
        return open_triton().versions
    except MissingError:
        return {}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _wait_until_ready(process: "subprocess.Popen[str]", port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise MissingError("the server has not become ready")


@dataclass(frozen=True)
class Contestant:
    """
    Attributes:
        name: as the tables show it.
        run: starts it with bundles, and ends it.
        protocols: what it speaks.
    """

    name: str
    run: Callable[[Sequence[Path]], AbstractContextManager[Running]]
    protocols: tuple[str, ...] = ("http",)


CONTESTANTS = {
    "deploy-rnn": Contestant(DEPLOY_RNN, run_deploy_rnn, PROTOCOLS),
    "triton": Contestant(TRITON, run_triton, PROTOCOLS),
    "plain": Contestant(PLAIN, run_plain),
    "sketch": Contestant(SKETCH, run_sketch),
}
"""By what the command line calls them."""
