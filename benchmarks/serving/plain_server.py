"""A server as one would write it without deploy-rnn: Starlette, and one `session.run` per request in a pool of threads.

`python -m benchmarks.serving.plain_server MODEL.onnx` serves the same bytes at the same path as `deploy-rnn serve`, as
far as the benchmark needs them, and nothing else: no checks, no limits, no streams. It prints its port.
"""

import json
import socket
import sys
import time
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
    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.runs = 0
        self.seconds = 0.0

    async def infer(self, request: Request) -> Response:
        body = await request.body()
        length = int(request.headers[LENGTH])
        shape = json.loads(body[:length])["inputs"][0]["shape"]
        characters = np.frombuffer(body, np.int64, offset=length).reshape(shape)
        scores = await run_in_threadpool(self.run, characters)
        output = {
            "name": "output",
            "datatype": "FP32",
            "shape": scores.shape,
            "parameters": {"binary_data_size": scores.nbytes},
        }
        message = json.dumps({"outputs": [output]}).encode()
        return Response(message + scores.tobytes(), headers={LENGTH: str(len(message))})

    def run(self, characters: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        lengths = np.full(len(characters), characters.shape[1])
        scores: np.ndarray = self.session.run(
            ["output"], {"characters": characters, "lengths": lengths}
        )[0]
        self.runs += 1
        self.seconds += time.perf_counter() - started
        return scores

    async def statistics(self, request: Request) -> Response:
        counters = {"executions": self.runs, "rows": self.runs, "compute_seconds": self.seconds}
        lines = [
            f'deploy_rnn_{name}_total{{model="highlight"}} {value}\n'
            for name, value in counters.items()
        ]
        return Response("".join(lines))


async def ready(request: Request) -> Any:
    return JSONResponse({"ready": True})


def main() -> None:
    server = PlainServer(sys.argv[1])
    routes = [
        Route("/v2/models/highlight/infer", server.infer, methods=["POST"]),
        Route("/metrics", server.statistics),
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
