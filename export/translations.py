"""Operators of PyTorch in those of ONNX, where torch.onnx would write what is not the same."""

from collections.abc import Callable, Mapping
from typing import Any

import onnx.numpy_helper
import torch
from onnxscript import opset18

# Its stubs know the types of ONNX, not the values of a graph that is being made.
op: Any = opset18


def _one_hot(self: Any, num_classes: int = -1) -> Any:
    """Look each class up among all of them first, as in an embedding: one that is not among them is refused."""
    numbers = torch.arange(num_classes).numpy()
    classes = op.Constant(value=onnx.numpy_helper.from_array(numbers))
    checked = op.Gather(classes, self)
    is_class = op.Equal(op.Unsqueeze(checked, op.Constant(value_ints=[-1])), classes)
    return op.Cast(is_class, to=onnx.TensorProto.INT64)


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.one_hot.default: _one_hot
}
