"""onnxruntime-web: WebAssembly in node, as in a browser. One node for all files, a line of JSON for each request."""

import json
import subprocess
from pathlib import Path
from typing import Any

from .opened import RefusedFileError, Run, Source
from .web_session import WebSession

SCRIPT = Path(__file__).with_name("on_web.mjs")

END_SECONDS = 2.0
"""How long node may take to end by itself."""


class Node:
    """A process of node that runs on_web.mjs, from the first request on; another one after it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request.

        Raises:
            RefusedFileError: node has ended.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                ["node", str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.end()
            raise RefusedFileError("node has ended without an answer.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End it: it does so by itself when its standard input is closed."""
        if self._process is None:
            return
        try:
            self._process.communicate(timeout=END_SECONDS)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._process = None


node = Node()
session = WebSession(node.ask)


def version() -> str:
    return session.version()


def open_file(source: Source) -> Run:
    return session.open_file(source)


def end() -> None:
    """End node, so that nothing is left of it."""
    node.end()
