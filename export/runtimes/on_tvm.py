"""Apache TVM, by its relax frontend: one compilation for each size."""

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from .opened import Feeds, Run, Source


def version() -> str:
    return str(tvm.__version__)


def open_file(source: Source) -> Run:
    assert source.shapes is not None
    shapes = {name: list(shape) for name, shape in source.shapes.items()}
    module = from_onnx(onnx.load(source.path), shape_dict=shapes, keep_params_in_input=False)
    module = relax.transform.LegalizeOps()(module)
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())

    def run(feeds: Feeds) -> list[np.ndarray]:
        inputs = [tvm.runtime.tensor(feeds[name]) for name in source.inputs]
        result = machine["main"](*inputs)
        outputs = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        return [output.numpy() for output in outputs]

    return run
