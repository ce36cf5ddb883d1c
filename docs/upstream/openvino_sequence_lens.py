"""OpenVINO's CPU plugin ignores `sequence_lens` of ONNX's RNN, GRU and LSTM where shapes are dynamic.

pip install numpy onnx onnxruntime openvino; python openvino_sequence_lens.py

Expected: the same numbers as onnxruntime, also with dynamic shapes. The output is right after `model.reshape(...)`.
"""

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

STEPS, BATCH, INPUT, HIDDEN = 6, 3, 4, 5
random = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array(random.standard_normal(shape, np.float32) / 2, name)


node = helper.make_node("LSTM", ["x", "W", "R", "", "lengths"], ["y", "y_h"], hidden_size=HIDDEN)
inputs = [
    helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "B", INPUT]),
    helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
]
outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "y_h")]
weights = [weight("W", 1, 4 * HIDDEN, INPUT), weight("R", 1, 4 * HIDDEN, HIDDEN)]
graph = helper.make_graph([node], "lstm", inputs, outputs, weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
data = model.SerializeToString()

feeds = {
    "x": random.standard_normal((STEPS, BATCH, INPUT), np.float32),
    "lengths": np.array([STEPS, 2, 4], np.int32),
}
session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
expected = session.run(["y"], feeds)[0]
core = openvino.Core()
for shapes in ("dynamic", "static"):
    read = core.read_model(data)
    if shapes == "static":
        read.reshape({name: list(array.shape) for name, array in feeds.items()})
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    error = np.abs(compiled(feeds)["y"] - expected).max()
    print(f"openvino {openvino.__version__}, {shapes} shapes: largest difference {error:.1e}")
