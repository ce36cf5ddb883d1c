"""A Ray cluster in a process of its own, as ray_cluster.py starts it; `make ray` has what that needs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAY_PYTHON = os.environ.get("RAY_PYTHON", sys.executable)
"""The Python of an environment with Ray."""

SCRIPT = Path(__file__).with_name("ray_cluster.py")

ANSWER = "ANSWER "


@dataclass
class Replicas:
    """The replicas on it, and whoever rules over them.

    Attributes:
        http_address, grpc_address: of Ray's proxies.
        process: runs ray_cluster.py.
        log: what Ray has written.
    """

    http_address: str
    grpc_address: str
    process: "subprocess.Popen[str]"
    log: Path

    def tell(self, method: str, *arguments: Any) -> Any:
        """Have a method of `ray_cluster.Cluster` called, and return its result."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise AssertionError(self.log.read_text(errors="replace"))


@contextmanager
def on_ray(bundles: Path, folder: Path) -> Iterator[Replicas]:
    """Two replicas that serve `bundles`, ready."""
    http_port, grpc_port = free_port(), free_port()
    log = folder / "log"
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [RAY_PYTHON, str(SCRIPT), str(bundles), str(http_port), str(grpc_port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment,
        )  # fmt: skip
    addresses = (f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")
    replicas = Replicas(*addresses, process, log)
    try:
        replicas.answer()
        yield replicas
        replicas.tell("close")
        assert process.wait(120) == 0, log.read_text(errors="replace")
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
