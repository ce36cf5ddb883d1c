"""A file in onnxruntime-web, wherever that runs: requests in JSON, which web_answers.mjs answers."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from .opened import Feeds, RefusedFileError, Run, Source


class WebSession:
    """
    Args:
        send: sends a request and returns the answer; raises RefusedFileError if there is none.
    """

    def __init__(self, send: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._send = send

    def version(self) -> str:
        return str(self._ask({"version": True})["version"])

    def open_file(self, source: Source) -> Run:
        self._ask({"open": source.path})

        def run(feeds: Feeds) -> list[np.ndarray]:
            tensors = {name: _to_json(array) for name, array in feeds.items()}
            outputs = self._ask({"run": tensors})["outputs"]
            return [_from_json(outputs[name]) for name in source.outputs]

        return run

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises: RefusedFileError: the request has failed, or there is no answer."""
        answer = self._send(request)
        if "error" in answer:
            raise RefusedFileError(answer["error"])
        return answer


def _to_json(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _from_json(tensor: dict[str, Any]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(tensor["data"]), tensor["dtype"])
    return flat.reshape(tensor["shape"])
