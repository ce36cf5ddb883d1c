"""A bundle of deploy-rnn in Triton's Python backend. The bundle stands next to this file.

Triton's Python needs `pip install 'deploy-rnn[onnxruntime]'`. deploy-rnn makes the runs: rows of unlike length share
one where that pays. It keeps the states of a sequence by the sequence's correlation id.
"""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from deploy_rnn.errors import DeployError, InputError, StreamError, TooLargeError
from deploy_rnn.serving.scheduling.limits import Limits
from deploy_rnn.serving.scheduling.model import Model
from deploy_rnn.serving.scheduling.request import Request, Response

BUNDLE = "bundle"
CLIENT_ERRORS = (InputError, StreamError, TooLargeError)


class TritonPythonModel:
    """What Triton calls: once `initialize`, `execute` for each batch of requests, and once `finalize`."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = config.get("parameters", {})
        settings = {name: entry["string_value"] for name, entry in parameters.items()}
        threads = settings.get("threads")
        idle = config.get("sequence_batching", {}).get("max_sequence_idle_microseconds")
        limits = Limits(stream_idle=int(idle) / 1e6) if idle else Limits()
        folder = Path(args["model_repository"]) / args["model_version"]
        self.model = Model(
            folder / BUNDLE,
            provider=settings.get("provider", "CPUExecutionProvider"),
            threads=int(threads) if threads else None,
            precision=settings.get("precision"),
            limits=limits,
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        # All are submitted before the first is waited for, so that they can share runs.
        submitted = [self.submit(request) for request in requests]
        return [self.answer(future) for future in submitted]

    def finalize(self) -> None:
        self.model.close()

    def submit(self, request: Any) -> "Future[Response]":
        """Hand a request to the model; one that is refused at once gives a future with the error."""
        inputs = {}
        for spec in self.model.inputs:
            tensor = triton.get_input_tensor_by_name(request, spec.name)
            if tensor is not None:
                inputs[spec.name] = tensor.as_numpy()
        flags = request.flags()
        wanted = Request(
            inputs,
            outputs=tuple(request.requested_output_names()),
            # Triton has 0 for a request of no sequence, and refuses flags without one.
            sequence=request.correlation_id() or None,
            start=bool(flags & triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
            end=bool(flags & triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
        )
        future: Future[Response] = Future()
        try:
            future = self.model.submit(wanted)
        except DeployError as error:
            future.set_exception(error)
        return future

    def answer(self, future: "Future[Response]") -> Any:
        try:
            response = future.result()
        except DeployError as error:
            code = triton.TritonError.INTERNAL
            if isinstance(error, CLIENT_ERRORS):
                code = triton.TritonError.INVALID_ARG
            return triton.InferenceResponse(error=triton.TritonError(str(error), code))
        tensors = []
        for name, array in response.outputs.items():
            tensors.append(triton.Tensor(name, np.ascontiguousarray(array)))
        return triton.InferenceResponse(tensors)
