"""MNN computes a GRU whose number of steps is dynamic as if each step were the first one.

pip install numpy onnx onnxruntime MNN; python mnn_single_step.py

Expected: the same numbers as onnxruntime. The converter takes the dynamic first axis of an input for 1, and then the
GRU for one of a single step ("Single SeqLength, don't use while but unrool it"): no step gets the state of the one
before. If `y_h` is an output too, the run fails instead. The same happens to an LSTM of one direction with initial_h
and initial_c. With `STEPS` in place of "T" it is right. The converter is called as a function, since the command
`mnnconvert` installs another package first.
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


node = helper.make_node(
    "GRU", ["x", "W", "R", "bias"], ["y"], hidden_size=HIDDEN, linear_before_reset=1
)
inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", BATCH, INPUT])]
weights = [
    weight("W", 1, 3 * HIDDEN, INPUT),
    weight("R", 1, 3 * HIDDEN, HIDDEN),
    weight("bias", 1, 6 * HIDDEN),
]
feeds = {"x": random.standard_normal((STEPS, BATCH, INPUT), np.float32)}
outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
graph = helper.make_graph([node], "graph", inputs, outputs, weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
)
expected = session.run(["y"], feeds)[0]
with tempfile.TemporaryDirectory() as folder:
    source, target = str(Path(folder) / "model.onnx"), str(Path(folder) / "model.mnn")
    onnx.save(model, source)
    arguments = ["-f", "ONNX", "--modelFile", source, "--MNNModel", target, "--bizCode", "x"]
    _tools.mnnconvert(["mnnconvert", *arguments, "--keepInputFormat"])
    net = load_module_from_file(target, list(feeds), ["y"])
variables = []
for array in feeds.values():
    kind = expr.int if array.dtype == np.int32 else expr.float
    variables.append(expr.placeholder(list(array.shape), expr.NCHW, kind))
    variables[-1].write(array)
error = np.abs(np.array(net.forward(variables)[0].read()) - expected).max()
print(f"MNN {MNN.version()}: largest difference {error:.1e}")
