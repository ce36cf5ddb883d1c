"""OpenVINO on the CPU, in float32: where the processor has AMX, it would pick bfloat16 by itself."""

import sys

import numpy as np

# It would report each import over the network, from a process of its own that may never end.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

from .opened import Feeds, Run, Source  # noqa: E402


def version() -> str:
    return str(openvino.__version__).partition("-")[0]


def open_file(source: Source) -> Run:
    core = openvino.Core()
    model = core.read_model(source.path)
    if source.shapes is not None:
        model.reshape({name: list(shape) for name, shape in source.shapes.items()})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feeds: Feeds) -> list[np.ndarray]:
        outputs = compiled(dict(feeds))
        return [outputs[name] for name in source.outputs]

    return run
