"""tract ignores the activation Relu of ONNX's RNN, and computes Tanh.

pip install numpy onnx onnxruntime tract; python tract_relu.py

Expected: the same numbers as onnxruntime, or an error.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tract
from onnx import TensorProto, helper, numpy_helper

STEPS, BATCH, INPUT, HIDDEN = 6, 3, 4, 5
random = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array(random.standard_normal(shape, np.float32) / 2, name)


node = helper.make_node(
    "RNN", ["x", "W", "R"], ["y", "y_h"], hidden_size=HIDDEN, activations=["Relu"]
)
inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, INPUT])]
weights = [weight("W", 1, HIDDEN, INPUT), weight("R", 1, HIDDEN, HIDDEN)]
outputs = [
    helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 1, BATCH, HIDDEN]),
    helper.make_tensor_value_info("y_h", TensorProto.FLOAT, [1, BATCH, HIDDEN]),
]
graph = helper.make_graph([node], "rnn", inputs, outputs, weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

x = random.standard_normal((STEPS, BATCH, INPUT), np.float32)
session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
)
expected = session.run(["y"], {"x": x})[0]
with tempfile.TemporaryDirectory() as folder:
    path = str(Path(folder) / "rnn.onnx")
    onnx.save(model, path)
    runnable = tract.onnx().load(path).into_model().into_runnable()
error = np.abs(runnable.run([x])[0].to_numpy() - expected).max()
print(f"tract {version('tract')}: largest difference {error:.1e}")
