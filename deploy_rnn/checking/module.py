"""What can be converted, exported or packaged at all: a `torch.nn.Module` with weights that are there."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin

from deploy_rnn.copying import unwrapped
from deploy_rnn.errors import ConversionError

QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
"""Where torch has the modules that `torch.ao.quantization` puts into a model."""

SCRIPTED = (
    "`model` is a TorchScript module, whose layers are compiled; "
    "give the torch.nn.Module that was scripted or traced."
)
"""The error for a model of which only its program is there."""


def check_module(model: Any) -> nn.Module:
    """Check that `model` is a module with Python source, and return it, without a wrapper such as `nn.DataParallel`.

    Raises:
        ConversionError: a TorchScript module, which has none; a quantized module; weights without values.
        TypeError: anything else that is not a module.
    """
    check_is_module(model)
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError(SCRIPTED)
    for path, module in model.named_modules():
        _check_part(path or "model", module)
    return cast(nn.Module, model)


def check_is_module(model: Any) -> None:
    """Raises: TypeError: `model` is not a module, or one of a graph alone."""
    if isinstance(model, type) or not isinstance(model, nn.Module):
        what, advice = described_object(model)
        raise TypeError(f"`model` must be a torch.nn.Module, got {what}; {advice}.")
    if is_exported_graph(model):
        raise TypeError(
            "`model` is the `.module()` of an ExportedProgram, in which a layer is an operator; give the module that "
            "was exported."
        )


def is_exported_graph(model: nn.Module) -> bool:
    """Whether this is the `.module()` of an `ExportedProgram`: PyTorch gives it an `eval` of its own, which refuses."""
    return isinstance(model, fx.GraphModule) and "eval" in vars(model)


def described_object(model: Any) -> tuple[str, str]:
    """What someone gave who did not give a module, and what to give instead."""
    name = type(model).__name__
    build = "build the model in Python and call its `load_state_dict`"
    if model is None:
        return "None", "a function that builds the model may lack its `return`"
    if isinstance(model, type):
        return f"the class {model.__name__}", "give an instance of it"
    if isinstance(model, torch.export.ExportedProgram):
        return "an ExportedProgram", "give the module that was exported"
    if isinstance(model, torch.jit.ScriptFunction):
        return name, "give the torch.nn.Module that has the weights"
    if isinstance(model, Tensor):
        return f"a {name}", "give the model first, then its example `args`"
    if isinstance(model, (str, bytes, PurePath)):
        return f"{name}, which is not loaded here", f"for a file of weights, {build}"
    if isinstance(model, Mapping):
        return f"{name}, such as a file of weights has", build
    if isinstance(model, (list, tuple)):
        return name, "give one module, whose `forward` calls the others"
    if type(model).__module__.partition(".")[0] == "onnx":
        return f"an onnx {name}", "give the PyTorch model that it was made of"
    owner = getattr(model, "__self__", None)
    if isinstance(owner, nn.Module):
        owner_name = type(owner).__name__
        return f"the method `{model.__name__}` of {owner_name}", f"give that {owner_name} itself"
    if callable(model):
        return name, "give a module whose `forward` does that, with the modules that it uses in it"
    return name, "give the model itself"


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
