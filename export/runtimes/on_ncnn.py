"""ncnn, through its converter pnnx, in float32 throughout; one conversion for each size.

The program of the package pnnx needs nothing else; importing the package would need torch.
"""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import ncnn
import numpy as np

from .opened import Feeds, RefusedFileError, Run, Source

FOREIGN = ("aten::", "pnnx.", "prim::", "nn.", "F.", "Tensor.", "torch.", "onnx::")
"""How operators begin that pnnx writes although ncnn lacks them."""

SHORT_DTYPES = {"float32": "f32", "int64": "i64", "int32": "i32", "bool": "bool"}
"""How pnnx writes the dtype of an input."""


def version() -> str:
    return str(ncnn.__version__)


def open_file(source: Source) -> Run:
    net = ncnn.Net()
    net.opt.use_fp16_packed = False
    net.opt.use_fp16_storage = False
    net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    with TemporaryDirectory() as folder:
        work = Path(folder)
        _convert(source, work)
        if net.load_param(str(work / "model.ncnn.param")) or net.load_model(
            str(work / "model.ncnn.bin")
        ):
            raise RefusedFileError("ncnn does not load what pnnx has made of the file.")

    def run(feeds: Feeds) -> list[np.ndarray]:
        extractor = net.create_extractor()
        for number, name in enumerate(source.inputs):
            extractor.input(f"in{number}", ncnn.Mat(np.ascontiguousarray(feeds[name])).clone())
        outputs = []
        for number, _ in enumerate(source.outputs):
            failed, output = extractor.extract(f"out{number}")
            if failed:
                raise RefusedFileError("ncnn's run has failed: it returned no outputs.")
            outputs.append(np.array(output))
        return outputs

    return run


def _convert(source: Source, folder: Path) -> None:
    assert source.shapes is not None
    found = find_spec("pnnx")
    if found is None or found.origin is None:
        raise RefusedFileError("ncnn needs `pnnx`; run: pip install --no-deps pnnx")
    program = Path(found.origin).with_name("pnnx")
    shutil.copyfile(source.path, folder / "model.onnx")
    shapes = []
    for name in source.inputs:
        sizes = ",".join(map(str, source.shapes[name]))
        shapes.append(f"[{sizes}]{SHORT_DTYPES[source.dtypes[name]]}")
    command = [str(program), "model.onnx", f"inputshape={','.join(shapes)}", "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    param = folder / "model.ncnn.param"
    if not param.exists():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise RefusedFileError(f"pnnx does not take the file: {lines[-1]}")
    operators = {line.split()[0] for line in param.read_text().splitlines() if line.strip()}
    foreign = sorted(operator for operator in operators if operator.startswith(FOREIGN))
    if foreign:
        raise RefusedFileError(f"ncnn lacks {', '.join(foreign)}.")
