"""onnxruntime-web: WebAssembly in node, as in a browser. One node for each opened file, a line of JSON for each run."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from .opened import Feeds, RefusedFileError, Run, Source

SCRIPT = Path(__file__).with_name("on_web.mjs")


def version() -> str:
    return str(Node().ask({"version": True})["version"])


def open_file(source: Source) -> Run:
    node = Node()
    node.ask({"open": source.path})

    def run(feeds: Feeds) -> list[np.ndarray]:
        tensors = {name: _to_json(array) for name, array in feeds.items()}
        outputs = node.ask({"run": tensors})["outputs"]
        return [_from_json(outputs[name]) for name in source.outputs]

    return run


class Node:
    """A process of node that runs on_web.mjs; it ends with this one, whose end closes its standard input."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["node", str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request.

        Raises:
            RefusedFileError: it has failed, or node has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RefusedFileError("node has ended without an answer.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RefusedFileError(answer["error"])
        return answer


def _to_json(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _from_json(tensor: dict[str, Any]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(tensor["data"]), tensor["dtype"])
    return flat.reshape(tensor["shape"])
