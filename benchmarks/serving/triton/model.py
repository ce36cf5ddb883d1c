"""The model of Triton's Python backend: one row, one run, on one thread. It runs in a process of Triton's own."""

import json
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = config["parameters"]["path"]["string_value"]
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.takes_lengths = len(self.session.get_inputs()) == 2

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        characters = triton.get_input_tensor_by_name(request, "characters").as_numpy()
        feeds = {"characters": characters}
        if self.takes_lengths:
            feeds["lengths"] = np.full(len(characters), characters.shape[1])
        (scores,) = self.session.run(["output"], feeds)
        return triton.InferenceResponse([triton.Tensor("output", scores)])
