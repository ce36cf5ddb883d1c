"""An .onnx file is written as the tools of others take it, too."""

from pathlib import Path

import onnx
import onnx_ir as ir


def save(model: ir.Model, path: Path) -> None:
    """Write a model to `path`."""
    proto = ir.to_proto(model)
    _drop_types_of_constants(proto.graph)
    path.write_bytes(proto.SerializeToString())


def _drop_types_of_constants(graph: onnx.GraphProto) -> None:
    """Leave out what each constant says of itself: tools that change one forget to change it in `value_info`.

    onnxruntime's `quantize_dynamic`, for example, transposes the weight of each Gemm.
    """
    constants = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(kept)
