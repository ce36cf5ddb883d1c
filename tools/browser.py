"""A headless Chromium, for the tests of pages and their pictures."""

import base64
import json
import os
import shutil
import signal
import time
from itertools import count
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip


def find_browser() -> str | None:
    """The path of a Chromium; None if none is installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class ProtocolError(Exception):
    """Chromium has answered a call with an error."""


class Browser:
    """A headless Chromium, driven over a pipe by the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        program = find_browser()
        assert program is not None
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        self._pid = os.posix_spawn(
            program, [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"], os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, read_there, 3),
                (os.POSIX_SPAWN_DUP2, write_there, 4),
            ],
        )  # fmt: skip
        os.close(read_there)
        os.close(write_there)
        self._from = os.fdopen(read_here, "rb")
        self._to = os.fdopen(write_here, "wb")
        self._numbers = count(1)
        self._rest = b""
        self.new_tab()

    _session: dict[str, str] = {}  # noqa: RUF012

    def new_tab(self) -> None:
        """Open another tab, which everything that follows is about."""
        self._session = {}
        target = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._to.write(
            json.dumps({"id": number, "method": method, "params": params, **self._session}).encode()
            + b"\0"
        )
        self._to.flush()
        message = self._message()
        while message.get("id") != number:
            message = self._message()
        if "error" in message:
            raise ProtocolError(message["error"]["message"])
        return dict(message["result"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._from.fileno(), 2**16)
            assert piece, "Chromium has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def screenshot(self, width: int, height: int, *, dark: bool = False) -> bytes:
        """The upper part of the page, as PNG."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until(f'location.href === "{url}" && document.readyState === "complete"')

    def value(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        deadline = time.monotonic() + 120
        while not self._is_true(expression):
            assert time.monotonic() < deadline, self.value("document.body?.innerText")
            time.sleep(0.02)

    def _is_true(self, expression: str) -> bool:
        try:
            return bool(self.value(expression))
        except ProtocolError:  # the page has just given way to another one
            return False

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._from.close()
        self._to.close()
