"""tract's sigmoid is not exactly 1 where it is 1 in float32, and a state that a GRU's gate should hold decays.

pip install numpy onnx onnxruntime tract; python tract_sigmoid.py

Expected: the same numbers as onnxruntime. The update gate is sigmoid(10,000), so that h' = h at every step.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tract
from onnx import TensorProto, helper, numpy_helper

STEPS, BATCH, INPUT, HIDDEN = 20000, 3, 4, 5

# A state is tanh(3) from the first step on, where x is 0. Then the update gate is sigmoid(10,000).
weights = np.zeros((1, 3 * HIDDEN, INPUT), np.float32)
weights[:, :HIDDEN, 0] = 1e4
bias = np.zeros((1, 6 * HIDDEN), np.float32)
bias[:, 2 * HIDDEN : 3 * HIDDEN] = 3
constants = [
    numpy_helper.from_array(weights, "W"),
    numpy_helper.from_array(np.zeros((1, 3 * HIDDEN, HIDDEN), np.float32), "R"),
    numpy_helper.from_array(bias, "bias"),
]
node = helper.make_node(
    "GRU", ["x", "W", "R", "bias"], ["y", "y_h"], hidden_size=HIDDEN, linear_before_reset=1
)
inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, INPUT])]
outputs = [
    helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 1, BATCH, HIDDEN]),
    helper.make_tensor_value_info("y_h", TensorProto.FLOAT, [1, BATCH, HIDDEN]),
]
graph = helper.make_graph([node], "gru", inputs, outputs, constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

x = np.ones((STEPS, BATCH, INPUT), np.float32)
x[0] = 0
session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
)
expected = session.run(["y"], {"x": x})[0]
with tempfile.TemporaryDirectory() as folder:
    path = str(Path(folder) / "gru.onnx")
    onnx.save(model, path)
    runnable = tract.onnx().load(path).into_model().into_runnable()
error = np.abs(runnable.run([x])[0].to_numpy() - expected).max()
print(f"tract {version('tract')}: largest difference {error:.1e}")
