"""onnxruntime-web in a headless Chromium: a page takes requests from a server in this process, and sends the answers.

The server listens on this machine only, below a path that nobody else knows.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import mkdtemp
from threading import Thread
from typing import Any

from .opened import RefusedFileError, Run, Source
from .table import CHROMIUM
from .web_session import WebSession

HERE = Path(__file__).parent
PAGE = (
    b'<!doctype html><title>deploy-rnn</title><script type="module" src="on_chromium.mjs"></script>'
)
TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm"}

FLAGS = (
    "--headless", "--disable-gpu", "--no-first-run", "--disable-component-update", "--disable-background-networking",
    "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip

LOOK_SECONDS = 1.0
"""How often it is looked whether Chromium still runs."""

POLL_SECONDS = 30.0
"""How long the page waits for a request before it asks again, so that no limit of the browser matters."""


class Browser:
    """A Chromium with one page, and the server that this page talks to; both from the first request on."""

    def __init__(self) -> None:
        self.requests: SimpleQueue[bytes] = SimpleQueue()
        self.answers: SimpleQueue[bytes] = SimpleQueue()
        self.file = b""
        self.secret = secrets.token_urlsafe()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request.

        Raises:
            RefusedFileError: Chromium has ended.
        """
        if self._process is None:
            self._process = self._started()
        if "open" in request:
            self.file = Path(request["open"]).read_bytes()
        self.requests.put(json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(self._answer(self._process))
        return answer

    def end(self) -> None:
        """End Chromium."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _answer(self, process: "subprocess.Popen[bytes]") -> bytes:
        while True:
            try:
                return self.answers.get(timeout=LOOK_SECONDS)
            except Empty:
                if process.poll() is not None:
                    raise RefusedFileError("Chromium has ended without an answer.") from None

    def _started(self) -> "subprocess.Popen[bytes]":
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self, web_folder()))
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        flags = [*FLAGS, f"--user-data-dir={mkdtemp()}"]
        # Chromium refuses to run as root within its sandbox.
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")
        address = f"http://127.0.0.1:{server.server_port}/{self.secret}/"
        return subprocess.Popen([program(), *flags, address], stdin=subprocess.DEVNULL)


def program() -> str:
    """The path of Chromium."""
    return next(filter(None, map(shutil.which, CHROMIUM)))


def web_folder() -> Path:
    """Return the folder with the files of onnxruntime-web, where node would look for it.

    Raises:
        RefusedFileError: the package is not there.
    """
    here = Path.cwd()
    folders = [folder / "node_modules" for folder in (here, *here.parents)]
    folders += [Path(entry) for entry in os.environ.get("NODE_PATH", "").split(os.pathsep) if entry]
    for folder in folders:
        if (folder / "onnxruntime-web" / "dist").is_dir():
            return folder / "onnxruntime-web" / "dist"
    raise RefusedFileError(
        "onnxruntime-web is not there; run: npm install onnxruntime-web, in this folder or one above it"
    )


def handler_of(browser: Browser, web: Path) -> type[BaseHTTPRequestHandler]:
    """Return what answers the page of a browser: its own files, those of onnxruntime-web, requests, and the model."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            secret, _, name = self.path[1:].partition("/")
            if secret != browser.secret:
                self.send_error(HTTPStatus.NOT_FOUND)
            elif name == "":
                self._send(PAGE, "text/html")
            elif name == "request":
                self._send(self._next_request(), "application/json")
            elif name == "file":
                self._send(browser.file, "application/octet-stream")
            else:
                self._send_file(name)

        def do_POST(self) -> None:
            if self.path != f"/{browser.secret}/answer":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            browser.answers.put(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(b"", "text/plain")

        def _next_request(self) -> bytes:
            try:
                return browser.requests.get(timeout=POLL_SECONDS)
            except Empty:
                return b"null"

        def _send_file(self, name: str) -> None:
            folder, _, base = name.rpartition("/")
            path = (web if folder == "onnxruntime-web" else HERE) / base
            if path.suffix in TYPES and path.is_file():
                self._send(path.read_bytes(), TYPES[path.suffix])
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, content: bytes, kind: str) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: there is a line for each request."""

    return Handler


browser = Browser()
session = WebSession(browser.ask)


def version() -> str:
    """That of onnxruntime-web, and that of Chromium."""
    done = subprocess.run([program(), "--version"], capture_output=True, text=True)
    number = re.search(r"\d+", done.stdout)
    return f"{session.version()} (Chromium {number[0]})" if number else session.version()


def open_file(source: Source) -> Run:
    return session.open_file(source)


def end() -> None:
    """End Chromium, so that nothing is left of it."""
    browser.end()
