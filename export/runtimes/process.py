"""A runtime in a child process: it may print, abort, or not agree with what else this process has loaded."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

import numpy as np

from deploy_rnn.errors import RunError

from .opened import Source
from .table import Runtime

SHOWN_LINES = 3
"""How many of the last lines that a runtime printed an error shows, if the process died."""


class RuntimeProcess:
    """A runtime that has one file open; a context.

    Raises:
        RuntimeMissingError: the runtime is not installed.
        RunError: it does not start.
    """

    def __init__(self, runtime: Runtime) -> None:
        runtime.check_installed()
        self.runtime = runtime
        self._log = TemporaryFile()  # noqa: SIM115, closed by `close`
        # The child finds what this process finds, and not what happens to lie in the current folder.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, "-P", "-m", f"{__package__}.child", runtime.opener]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": path},
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
        """End the process, and those that the runtime has started."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        self._log.close()

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def version(self) -> str:
        version: str = self._ask("version", None)
        return version

    def open(self, source: Source) -> None:
        """Open a file, in fact when it is first run."""
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
        """Raises: RunError: the runtime refuses, or its process has died."""
        assert self._process.stdin is not None
        try:
            pickle.dump((kind, values), self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RunError(self._death()) from None
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        try:
            outcome, result = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise RunError(self._death()) from None
        if outcome == "failed":
            raise RunError(f"{self.runtime.title}: {result}")
        return result

    def _death(self) -> str:
        code = self._process.wait()
        how = f"with exit code {code}"
        if code < 0:
            how = f"by {signal.Signals(-code).name}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        shown = " ".join(line.strip() for line in lines[-SHOWN_LINES:])
        return f"{self.runtime.title} ended its process {how}{f': {shown}' if shown else '.'}"
