"""The process of `deploy-rnn serve`: its signals, its standard files, and its end."""

import gc
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy_rnn.serving import process
from deploy_rnn.serving.process import end_by_signal

posix = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors of POSIX")


class Ended(BaseException):
    """Stands in for the end of the process."""


@pytest.fixture(autouse=True)
def ends_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def end_by_signal(number: int) -> None:
        raise Ended(number)

    monkeypatch.setattr(process, "end_by_signal", end_by_signal)


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_the_first_signal_asks_and_the_second_ends(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(signal, name)
    asked = []
    handler = signal.getsignal(number)
    with process.StopSignals() as signals:
        signals.ask(lambda: asked.append(1))
        signal.raise_signal(number)
        assert signals.received == number
        signal.raise_signal(number)  # of the same Ctrl-C
        monkeypatch.setattr(process, "SAME_SECONDS", 0.0)
        with pytest.raises(Ended, match=str(int(signal.SIGTERM))):
            signal.raise_signal(signal.SIGTERM)
    assert asked == [1]
    assert signal.getsignal(number) is handler


@posix
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPROF", "SIGIO"])
def test_a_signal_that_means_nothing_ends_nothing(name: str) -> None:
    """Nor is it taken from whoever handles it, such as a profiler."""
    number = getattr(signal, name)
    caught = []
    previous = signal.signal(number, signal.SIG_DFL)
    try:
        with process.StopSignals():
            assert signal.getsignal(number) is signal.SIG_IGN
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, lambda *_: caught.append(1))
        with process.StopSignals() as signals:
            signal.raise_signal(number)
            assert signals.received is None
    finally:
        signal.signal(number, previous)
    assert caught == [1]


@posix
def test_a_signal_that_comes_before_there_is_a_server_ends_the_process() -> None:
    with process.StopSignals() as signals:
        with pytest.raises(Ended):
            signal.raise_signal(signal.SIGTERM)
        assert signals.received is None


def test_the_first_process_of_a_container_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel spares it from a signal that nobody handles."""
    codes = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "raise_signal", lambda number: None)
    monkeypatch.setattr(os, "_exit", codes.append)
    end_by_signal(signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM]


HANGS = """
import sys, threading
from deploy_rnn.cli import main
from deploy_rnn.serving.scheduling import model

class Hanging:
    def __init__(self, *args, **options):
        print("loading", file=sys.stderr, flush=True)
        threading.Event().wait()

model.Model = Hanging
main()
"""
"""The command, with models that never get loaded."""


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, text=True, **options) as running:
        try:
            yield running
        finally:
            running.kill()


@posix
def test_sigterm_while_a_model_is_loaded(tmp_path: Path, new_bundle: Any) -> None:
    new_bundle(tmp_path / "sum")
    arguments = ["serve", str(tmp_path), "--http-port", "0", "--grpc-port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([sys.executable, "-c", HANGS, *arguments], **pipes) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "loading\n"
        running.send_signal(signal.SIGTERM)
        output, errors = running.communicate(timeout=20)
    assert (running.returncode, output, errors) == (-signal.SIGTERM, "", "")


@posix
def test_standard_files_that_are_closed_or_that_nobody_reads(
    real_bundles: Path, tmp_path: Path
) -> None:
    """stdin and stderr are closed, and stdout is a pipe whose reader has left: what is written there must not reach a
    client, nor end the server. Nor does anything appear in the home, where onnxruntime would keep an id."""
    code = """
import os, signal, threading, time, urllib.request
from deploy_rnn.cli import main
from deploy_rnn.serving import server

def ask(address):
    url = f"http://{address}/v2/health/ready"
    while True:
        try:
            urllib.request.urlopen(url, timeout=20)
        except OSError:
            time.sleep(0.05)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
            return

class Asked(server.Server):
    async def start(self, *args):
        assert os.fstat(0) and os.fstat(2)
        await super().start(*args)
        threading.Thread(target=ask, args=(self.http_address,), daemon=True).start()

server.Server = Asked
main()
"""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
    read, write = os.pipe()
    os.close(read)
    try:
        command = [
            sys.executable,
            "-c",
            code,
            "serve",
            str(real_bundles / "tagger"),
            "--threads",
            "1",
        ]
        command += ["--http-port", "0", "--grpc-port", "0"]
        shell = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *command]
        with started(shell, stdout=write, env={**environment, "HOME": str(tmp_path)}) as running:
            assert running.wait(60) == 0
    finally:
        os.close(write)
    assert not list(tmp_path.iterdir())


def test_threads_take_turns_within_the_time_of_a_short_run() -> None:
    before = sys.getswitchinterval()
    try:
        process.let_threads_take_turns()
        assert sys.getswitchinterval() <= 1e-3
    finally:
        sys.setswitchinterval(before)


THREADS_WITH_MEMORY = """
import ctypes, os, sys, threading
from deploy_rnn.serving import process

os.sched_getaffinity = lambda pid: {0, 1}
process.let_threads_share_memory()
library = ctypes.CDLL(None)
all_have_some = threading.Barrier(12)


def take() -> None:
    library.malloc(1000)
    all_have_some.wait()


threads = [threading.Thread(target=take) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library.malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(("variables", "most"), [({}, 2), ({"MALLOC_ARENA_MAX": "5"}, 5)])
def test_threads_share_stores_of_memory(variables: dict[str, str], most: int) -> None:
    environment = dict(os.environ)
    environment.pop("MALLOC_ARENA_MAX", None)
    environment.update(variables)
    finished = subprocess.run(
        [sys.executable, "-c", THREADS_WITH_MEMORY],
        env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert finished.stderr.count("Arena ") == most


def test_what_is_imported_is_not_collected_again() -> None:
    """A full collection would look through all of it, while nothing else goes on."""
    try:
        process.keep_what_is_imported()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
