"""A server as one would write it without deploy-rnn: Starlette, and one `session.run` per request in a pool of threads.

`python -m benchmarks.serving.plain_server BUNDLE ...` serves the same bytes at the same paths as `deploy-rnn serve`, as
far as the benchmark needs them, and nothing else: no checks, no limits, no streams, no gRPC. It prints its port.
"""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LENGTH = "Inference-Header-Content-Length"


class PlainServer:
    def __init__(self, bundles: list[Path]) -> None:
        providers = ["CPUExecutionProvider"]
        self.sessions = {
            bundle.name: onnxruntime.InferenceSession(bundle / "native.onnx", providers=providers)
            for bundle in bundles
        }

    async def infer(self, request: Request) -> Response:
        body = await request.body()
        length = int(request.headers[LENGTH])
        shape = json.loads(body[:length])["inputs"][0]["shape"]
        characters = np.frombuffer(body, np.int64, offset=length).reshape(shape)
        scores = await run_in_threadpool(self.run, request.path_params["model"], characters)
        output = {
            "name": "output",
            "datatype": "FP32",
            "shape": scores.shape,
            "parameters": {"binary_data_size": scores.nbytes},
        }
        message = json.dumps({"outputs": [output]}).encode()
        return Response(message + scores.tobytes(), headers={LENGTH: str(len(message))})

    def run(self, model: str, characters: np.ndarray) -> np.ndarray:
        session = self.sessions[model]
        feeds = {"characters": characters}
        if len(session.get_inputs()) == 2:
            feeds["lengths"] = np.full(len(characters), characters.shape[1])
        scores: np.ndarray = session.run(["output"], feeds)[0]
        return scores


async def ready(request: Request) -> Any:
    return JSONResponse({"ready": True})


def main() -> None:
    server = PlainServer([Path(argument) for argument in sys.argv[1:]])
    routes = [
        Route("/v2/models/{model}/infer", server.infer, methods=["POST"]),
        Route("/v2/health/ready", ready),
    ]
    # Without `proto` asyncio does not recognise TCP, and leaves Nagle's algorithm on.
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(2048)
    print(f"HTTP on http://127.0.0.1:{listening.getsockname()[1]}, no gRPC", flush=True)
    config = uvicorn.Config(Starlette(routes=routes), log_level="warning", access_log=False)
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()
