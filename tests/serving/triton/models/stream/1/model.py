"""Each chunk in a run of onnxruntime's own, with the state of its sequence. The bundle stands next to this file."""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "bundle" / "native.onnx"
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.states = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = ("input", "START", "CORRID")
        tensors = [triton.get_input_tensor_by_name(request, name).as_numpy() for name in names]
        steps, start, sequence = tensors[0], tensors[1].item(), tensors[2].item()
        if start:
            self.states[sequence] = np.zeros((1, 1, 4), np.float32)
        feeds = {"input": steps, "h0": self.states[sequence]}
        output, self.states[sequence] = self.session.run(["output", "h_n"], feeds)
        return triton.InferenceResponse([triton.Tensor("output", output)])
