"""Types of numbers that a file cannot have."""

import torch
from torch import nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import ExportError
from deploy_rnn.nn.recurrent import is_recurrent


def check_inputs(call: ExampleCall) -> None:
    """Raises: ExportError: an argument is bfloat16 or complex."""
    for name, tensor in zip(call.names, call.tensors, strict=True):
        if tensor.dtype is torch.bfloat16:
            raise ExportError(
                f"`{name}` is bfloat16, which numpy lacks, and so onnxruntime in Python: export the model by its "
                "`.float()`, or let `forward` take float32."
            )
        if tensor.is_complex():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ExportError(
                f"`{name}` is {dtype}, and ONNX has no complex inputs; let `forward` take torch.view_as_real of it, "
                "and begin with torch.view_as_complex."
            )


def check_layers(model: nn.Module) -> bool:
    """Check the dtypes of the recurrent layers. Returns: whether there are any."""
    layers = {name: module for name, module in model.named_modules() if is_recurrent(module)}
    for name, layer in layers.items():
        dtype = next(layer.parameters()).dtype
        if dtype not in (torch.float32, torch.float64):
            raise ExportError(
                f"`{name or 'model'}` has {dtype} weights; onnxruntime multiplies float32 and float64 on every "
                "provider: convert the model by its `.float()`, and the tensors that it takes."
            )
    return bool(layers)
