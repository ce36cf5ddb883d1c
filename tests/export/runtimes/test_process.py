"""Nothing is left of a runtime, whichever way it ends: no process, none that it has started, no file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy_rnn.errors import RunError
from deploy_rnn.export.runtimes import process
from deploy_rnn.export.runtimes.opened import Source
from deploy_rnn.export.runtimes.process import RuntimeProcess
from deploy_rnn.export.runtimes.table import Runtime

OPENER = '''
"""A runtime that starts a process, writes a file, and then does what the name of the model says."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOREVER = "import time; time.sleep(3600)"

def version():
    return "1"

def open_file(source):
    started = subprocess.Popen([sys.executable, "-S", "-c", FOREVER])
    left = tempfile.mkdtemp()
    seen = Path(source.path).parent / "seen"
    new = seen.with_suffix(".new")
    new.write_text(f"{os.getpid()} {started.pid} {left}")
    new.rename(seen)
    match Path(source.path).name:
        case "raises":
            raise ValueError("no")
        case "aborts":
            os.abort()
        case "hangs":
            time.sleep(3600)
    return lambda feeds: []
'''

PLAYED = Runtime("played", "Played", "played_runtime", "played_runtime", "pip")

OTHER_PROCESS = """
import signal
import sys
from deploy_rnn.export.runtimes.opened import Source
from deploy_rnn.export.runtimes.process import RuntimeProcess
from deploy_rnn.export.runtimes.table import Runtime

# A shell has what it starts in the background ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
with RuntimeProcess(Runtime("played", "Played", "played_runtime", "played_runtime", "pip")) as process:
    process.open(Source(sys.argv[1], [], [], {}))
    process.run({})
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runtime, which this process finds, and those that it starts; and with empty models."""
    (tmp_path / "played_runtime.py").write_text(OPENER)
    for name in ("runs", "raises", "aborts", "hangs"):
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether a process is there; one that has ended, and that its parent has not asked for, is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_for_the_end(folder: Path) -> Path:
    """Wait until the runtime, and what it has started, has ended; return the folder that it has made."""
    own, started, left = (folder / "seen").read_text().split()
    until(lambda: not runs(int(own)), "the runtime still runs")
    until(lambda: not runs(int(started)), "what the runtime has started still runs")
    return Path(left)


def run_file(folder: Path, name: str) -> None:
    with RuntimeProcess(PLAYED) as runtime:
        runtime.open(Source(str(folder / name), [], [], {}))
        runtime.run({})


@pytest.mark.parametrize(("name", "message"), [("raises", "Played: no"), ("aborts", "by SIGABRT")])
def test_after_a_failure(name: str, message: str, folder: Path) -> None:
    with pytest.raises(RunError, match=message):
        run_file(folder, name)
    assert not wait_for_the_end(folder).exists()


def test_after_a_run(folder: Path) -> None:
    run_file(folder, "runs")
    assert not wait_for_the_end(folder).exists()


def test_after_too_long_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = RuntimeProcess(PLAYED)
    started.open(Source(str(folder / "hangs"), [], [], {}))
    monkeypatch.setattr(process, "ANSWER_SECONDS", 1)
    with started, pytest.raises(RunError, match="Played did not answer within 1 s, and was ended"):
        started.run({})
    assert not wait_for_the_end(folder).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_after_a_signal(number: signal.Signals, folder: Path) -> None:
    """The runtime is at work: Ctrl-C ends it in order, and without its parent it ends by itself."""
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder / "hangs")]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as other:
        until((folder / "seen").exists, "the runtime does not start")
        other.send_signal(number)
    left = wait_for_the_end(folder)
    if number == signal.SIGINT:
        assert not left.exists()
