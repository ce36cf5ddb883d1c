"""ncnn's GRU and LSTM, converted by pnnx, ignore the batch of ONNX's, and return one row for each step or batch.

pip install numpy onnx onnxruntime ncnn; pip install --no-deps pnnx; python ncnn_batch.py

Expected: the output [T, D, B, H], or an error of pnnx. Of pnnx only the program is used, which needs no torch.
"""

import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import ncnn
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

STEPS, BATCH, INPUT, HIDDEN = 6, 3, 4, 5
random = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array(random.standard_normal(shape, np.float32) / 2, name)


nodes = [
    helper.make_node(
        "GRU", ["x", "W", "R", "bias"], ["steps"], hidden_size=HIDDEN, linear_before_reset=1
    ),
    helper.make_node("Squeeze", ["steps", "axes"], ["y"]),
]
weights = [
    weight("W", 1, 3 * HIDDEN, INPUT),
    weight("R", 1, 3 * HIDDEN, HIDDEN),
    weight("bias", 1, 6 * HIDDEN),
    numpy_helper.from_array(np.array([1]), "axes"),
]
inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, INPUT])]
outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, BATCH, HIDDEN])]
graph = helper.make_graph(nodes, "gru", inputs, outputs, weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

x = random.standard_normal((STEPS, BATCH, INPUT), np.float32)
session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
)
expected = session.run(["y"], {"x": x})[0]
program = Path(find_spec("pnnx").origin).with_name("pnnx")
net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
with tempfile.TemporaryDirectory() as folder:
    onnx.save(model, Path(folder) / "gru.onnx")
    command = [str(program), "gru.onnx", f"inputshape=[{STEPS},{BATCH},{INPUT}]f32", "fp16=0"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    net.load_param(str(Path(folder) / "gru.ncnn.param"))
    net.load_model(str(Path(folder) / "gru.ncnn.bin"))
extractor = net.create_extractor()
extractor.input("in0", ncnn.Mat(x).clone())
answer = np.array(extractor.extract("out0")[1])
print(f"ncnn {ncnn.__version__}: the shape is {answer.shape}, and should be {expected.shape}")
error = np.abs(answer - expected).max()
print(f"ncnn {ncnn.__version__}: largest difference {error:.1e}")
