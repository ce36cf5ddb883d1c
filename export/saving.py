"""An .onnx file is written as the tools of others take it, too."""

from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from deploy_rnn.errors import ExportError

MOST_BYTES = 2**31 - 1
"""What protobuf, the format of an .onnx file, holds at most."""


def check_weights(model: nn.Module) -> None:
    """Raises: ExportError: the weights of a model are too large for one file. Minutes of tracing need not show it."""
    _check_bytes(sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())))


def _check_bytes(count: int) -> None:
    if count > MOST_BYTES:
        raise ExportError(
            f"the weights are {count / 1e9:.1f} GB, and an .onnx file holds {MOST_BYTES / 1e9:.1f} GB at most; use "
            "export_bundle, which keeps them in a file of their own."
        )


def save(model: ir.Model, path: Path) -> None:
    """Write a model to `path`.

    Raises:
        ExportError: its constants are too large for one file.
    """
    constants = [value.const_value for value in model.graph.initializers.values()]
    inner = [tensor for tensor in constants if not isinstance(tensor, ir.ExternalTensor)]
    _check_bytes(sum(tensor.nbytes for tensor in inner if tensor is not None))
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
