"""What can be converted, exported or packaged at all: a `torch.nn.Module` with weights that are there."""

from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DataParallel, DistributedDataParallel

from deploy_rnn.errors import ConversionError

QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
"""Where torch has the modules that `torch.ao.quantization` puts into a model."""


def check_module(model: Any) -> nn.Module:
    """Check that `model` is a module with Python source, and return it, without `nn.DataParallel` around it.

    Raises:
        ConversionError: a TorchScript module, which has none; a quantized module; weights without values.
        TypeError: anything else that is not a module.
    """
    check_is_module(model)
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError(
            "`model` is a TorchScript module, whose layers are compiled; give the torch.nn.Module that was scripted or "
            "traced."
        )
    for path, module in model.named_modules():
        _check_part(path or "model", module)
    return cast(nn.Module, model)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module in `nn.DataParallel` or `DistributedDataParallel`, whose own forward hides its arguments."""
    while isinstance(model, (DataParallel, DistributedDataParallel)):
        model = model.module
    return model


def check_is_module(model: Any) -> None:
    """Raises: TypeError: `model` is not a module."""
    if isinstance(model, type):
        raise TypeError(
            f"`model` must be a torch.nn.Module, got the class {model.__name__}; give an instance of it."
        )
    if isinstance(model, torch.export.ExportedProgram):
        raise TypeError(
            "`model` must be a torch.nn.Module, got an ExportedProgram; give the module that was exported."
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")


def _check_part(path: str, module: nn.Module) -> None:
    """Check one module within a model."""
    name = type(module).__name__
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise ConversionError(
            f"`{path}` is a torch.nn.{name} that has not run, so that its weights have no shape yet; call the model "
            "once on its arguments before."
        )
    if type(module).__module__.startswith(QUANTIZED):
        raise ConversionError(
            f"`{path}` is a quantized {name}, whose weights are not tensors; give the model of floats, and quantize "
            "the file that comes of it."
        )
    for weight_name, weight in (*module._parameters.items(), *module._buffers.items()):
        if weight is not None and weight.is_meta:
            raise ConversionError(
                f"`{weight_name}` of `{path}` is on the meta device, where tensors have no values; load the weights "
                "(`to_empty(device='cpu')`, then `load_state_dict`) before."
            )
