"""A runtime in a child process: it may print, abort, or not agree with what else this process has loaded."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Timer
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import uses_external_data

from deploy_rnn.errors import RunError

from .opened import Source
from .table import Runtime

SHOWN_LINES = 3
"""How many of the last lines that a runtime printed an error shows, if the process died."""

ANSWER_SECONDS = 600.0
"""How long a runtime may take to open a file and run it once; some compile for minutes."""

MOST_BYTES = 2**31 - 1
"""What one .onnx file holds at most."""

LEAVE_SECONDS = 5.0
"""How long a process may take to end by itself, when it is told that no more comes."""


def with_weights(path: Path, folder: Path) -> Path:
    """Return a file that has its weights in it, which some runtimes need: `path`, or a copy in `folder`."""
    model = onnx.load(path, load_external_data=False)
    if not any(map(uses_external_data, model.graph.initializer)):
        return path
    onnx.load_external_data_for_model(model, str(path.parent))
    # Larger ones are left to the runtime.
    if model.ByteSize() > MOST_BYTES:
        return path
    whole = folder / path.name
    whole.write_bytes(model.SerializeToString())
    return whole


class RuntimeProcess:
    """A runtime that has one file open; a context.

    However the context ends, no process of the runtime is left, nor anything that it has written: what it starts
    belongs to its process group, and its temporary files lie in a folder that is removed. If this process is killed,
    the runtime ends by itself.

    Raises:
        RuntimeMissingError: the runtime is not installed.
        RunError: it does not start.
    """

    def __init__(self, runtime: Runtime) -> None:
        runtime.check_installed()
        self.runtime = runtime
        self._is_asked = False
        self._is_late = False
        self._log = TemporaryFile()  # noqa: SIM115, closed by `close`
        self._folder = TemporaryDirectory(prefix="deploy-rnn-", ignore_cleanup_errors=True)
        # The child finds what this process finds, and not what happens to lie in the current folder.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, "-P", "-m", f"{__package__}.child", runtime.opener]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": self._folder.name},
            # With the processes that a runtime starts, it can be ended as a whole.
            start_new_session=True,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RuntimeProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and those that the runtime has started: by itself, or by force if it is at work."""
        try:
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
            if not self._is_asked:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(LEAVE_SECONDS)
        finally:
            self._kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._log.close()
            self._folder.cleanup()

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def version(self) -> str:
        version: str = self._ask("version", None)
        return version

    def open(self, source: Source) -> None:
        """Open a file, in fact when it is first run."""
        path = with_weights(Path(source.path), Path(self._folder.name))
        source = replace(source, path=str(path))
        self._ask("open", {"source": source, "one_size": self.runtime.one_size})

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the file that is open, in its order."""
        outputs: list[np.ndarray] = self._ask("run", dict(feeds))
        return outputs

    def milliseconds(self, feeds: Mapping[str, np.ndarray]) -> float:
        """Return the median time of a few runs, without that between the processes."""
        milliseconds: float = self._ask("milliseconds", dict(feeds))
        return milliseconds

    def _ask(self, kind: str, values: Any) -> Any:
        """Raises: RunError: the runtime refuses, takes too long, or its process has died."""
        assert self._process.stdin is not None
        try:
            pickle.dump((kind, values), self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RunError(self._death()) from None
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        self._is_asked = True
        timer = Timer(ANSWER_SECONDS, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            outcome, result = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise RunError(self._death()) from None
        finally:
            timer.cancel()
        self._is_asked = False
        if outcome == "failed":
            raise RunError(f"{self.runtime.title}: {result}")
        return result

    def _end_late(self) -> None:
        self._is_late = True
        self._kill()

    def _kill(self) -> None:
        """The whole group: its leader may have ended before the others."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def _death(self) -> str:
        code = self._process.wait()
        if self._is_late:
            return (
                f"{self.runtime.title} did not answer within {ANSWER_SECONDS:g} s, and was ended."
            )
        how = f"with exit code {code}"
        if code < 0:
            how = f"by {signal.Signals(-code).name}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        shown = " ".join(line.strip() for line in lines[-SHOWN_LINES:])
        return f"{self.runtime.title} ended its process {how}{f': {shown}' if shown else '.'}"
