"""MNN returns Y, the output of every step, for Y_h of ONNX's GRU and RNN, where Y is not asked for.

pip install numpy onnx onnxruntime MNN; python mnn_final_state.py

Expected: Y_h, of the shape [1, B, H]. It is right where the node names Y, too. The converter is called as
a function, since the command `mnnconvert` installs another package first.
"""

import tempfile
from pathlib import Path

import _tools  # MNN's converter
import MNN
import numpy as np
import onnx
import onnxruntime
from MNN import expr
from MNN.nn import load_module_from_file
from onnx import TensorProto, helper, numpy_helper

STEPS, BATCH, INPUT, HIDDEN = 6, 3, 4, 5
random = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array(random.standard_normal(shape, np.float32) / 2, name)


node = helper.make_node("RNN", ["x", "W", "R"], ["", "y_h"], hidden_size=HIDDEN)
inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, INPUT])]
weights = [weight("W", 1, HIDDEN, INPUT), weight("R", 1, HIDDEN, HIDDEN)]
feeds = {"x": random.standard_normal((STEPS, BATCH, INPUT), np.float32)}
outputs = [helper.make_tensor_value_info("y_h", TensorProto.FLOAT, None)]
graph = helper.make_graph([node], "graph", inputs, outputs, weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
)
expected = session.run(["y_h"], feeds)[0]
with tempfile.TemporaryDirectory() as folder:
    source, target = str(Path(folder) / "model.onnx"), str(Path(folder) / "model.mnn")
    onnx.save(model, source)
    arguments = ["-f", "ONNX", "--modelFile", source, "--MNNModel", target, "--bizCode", "x"]
    _tools.mnnconvert(["mnnconvert", *arguments, "--keepInputFormat"])
    net = load_module_from_file(target, list(feeds), ["y_h"])
variables = []
for array in feeds.values():
    kind = expr.int if array.dtype == np.int32 else expr.float
    variables.append(expr.placeholder(list(array.shape), expr.NCHW, kind))
    variables[-1].write(array)
answer = np.array(net.forward(variables)[0].read())
print(f"MNN {MNN.version()}: the shape is {answer.shape}, and should be {expected.shape}")
error = np.abs(answer[0] - expected).max()
print(f"MNN {MNN.version()}: largest difference {error:.1e}")
