"""MNN, by its own converter.

Neither its command `mnnconvert` nor `MNN.tools` is used: they install a package for telemetry with the first pip that
is on PATH.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import _tools  # MNN's converter
import MNN
import numpy as np
from MNN import expr
from MNN.nn import load_module_from_file

from .opened import Feeds, RefusedFileError, Run, Source


def version() -> str:
    return str(MNN.version())


def open_file(source: Source) -> Run:
    with TemporaryDirectory() as folder:
        converted = Path(folder) / "model.mnn"
        arguments = ["-f", "ONNX", "--modelFile", source.path, "--MNNModel", str(converted)]
        _tools.mnnconvert(["mnnconvert", *arguments, "--bizCode", "x", "--keepInputFormat"])
        # It fails by writing no file.
        if not converted.exists():
            raise RefusedFileError("MNN's converter does not take the file.")
        net = load_module_from_file(str(converted), list(source.inputs), list(source.outputs))

    def run(feeds: Feeds) -> list[np.ndarray]:
        outputs = net.forward([_variable(feeds[name]) for name in source.inputs])
        # An error within a run has no outputs, and no exception.
        if len(outputs) != len(source.outputs):
            raise RefusedFileError("MNN's run has failed: it returned no outputs.")
        return [np.array(output.read()) for output in outputs]

    return run


def _variable(array: np.ndarray) -> expr.Var:
    is_whole = array.dtype.kind in "iub"
    variable = expr.placeholder(list(array.shape), expr.NCHW, expr.int if is_whole else expr.float)
    variable.write(np.ascontiguousarray(array, np.int32 if is_whole else np.float32))
    return variable
