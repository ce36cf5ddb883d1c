"""OpenCV's dnn ignores `sequence_lens` of ONNX's GRU.

pip install numpy onnx onnxruntime 'opencv-python-headless>=5'; python opencv_gru_sequence_lens.py

Expected: the same numbers as onnxruntime, or an error.
"""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

STEPS, BATCH, INPUT, HIDDEN = 6, 3, 4, 5
random = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array(random.standard_normal(shape, np.float32) / 2, name)


node = helper.make_node(
    "GRU", ["x", "W", "R", "", "lengths"], ["y", "y_h"], hidden_size=HIDDEN, linear_before_reset=1
)
inputs = [
    helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, INPUT]),
    helper.make_tensor_value_info("lengths", TensorProto.INT32, [BATCH]),
]
outputs = [
    helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 1, BATCH, HIDDEN]),
    helper.make_tensor_value_info("y_h", TensorProto.FLOAT, [1, BATCH, HIDDEN]),
]
weights = [weight("W", 1, 3 * HIDDEN, INPUT), weight("R", 1, 3 * HIDDEN, HIDDEN)]
graph = helper.make_graph([node], "gru", inputs, outputs, weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

feeds = {
    "x": random.standard_normal((STEPS, BATCH, INPUT), np.float32),
    "lengths": np.array([STEPS, 2, 4], np.int32),
}
session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
)
expected = session.run(["y"], feeds)[0]
with tempfile.TemporaryDirectory() as folder:
    path = str(Path(folder) / "gru.onnx")
    onnx.save(model, path)
    net = cv2.dnn.readNetFromONNX(path)
for name, array in feeds.items():
    net.setInput(array, name)
error = np.abs(net.forward(["y", "y_h"])[0] - expected).max()
print(f"opencv {cv2.__version__}: largest difference {error:.1e}")
