"""`export_onnx`: one call from a model to an ONNX file that has been run and compared."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

import deploy_rnn
from deploy_rnn.call import Axes, Call, on_cpu
from deploy_rnn.comparison import Limits
from deploy_rnn.conversion import is_recurrent
from deploy_rnn.errors import ExportError
from deploy_rnn.files import replace_file, target

from .capture import capture, find_batch_axes
from .forms import FORMS
from .layer import is_layer, layer_axes, layer_names
from .lower import lower
from .names import name_ends
from .report import Report
from .verification import SIZES, check

OPSETS = (18, 19, 20)


def export_onnx(
    model: nn.Module,
    args: Any,
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    form: str = "unrolled",
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int = 18,
    atol: float | None = None,
    rtol: float | None = None,
    sizes: Sequence[int] = SIZES,
) -> Report:
    """Export a model with recurrent layers to one self-contained ONNX file, and check it before it appears.

    The model is exported as it computes in evaluation mode. Every `torch.nn.RNN`, `GRU` and `LSTM` in it, every
    `deploy_rnn.Recurrent`, wherever it stands, is written in `form`; the rest goes through `torch.onnx.export`. The
    file is then compared with `model` as `verify` does, under a temporary name, and moved to `path` only if all agrees;
    what was at `path` before stays until then.

    Args:
        model: a recurrent layer of `torch.nn`, a `deploy_rnn.Recurrent`, or any module that contains some, on any
            device. It is not changed.
        args: example arguments, as for `torch.onnx.export`: a tuple, or one tensor.
        path: where the file is to be; its folder must exist.
        kwargs: example keyword arguments.
        form: "unrolled": every step written out; the number of steps is the example's, the batch may be dynamic.
        dynamic_shapes: as for `torch.onnx.export`, such as {"input": {1: "B"}}. None: the batch axis of the recurrent
            layers, called "B", and no other; the report's `inputs` show what is fixed.
        input_names: names of the graph's inputs; for a bare layer `input`, `h0` and `c0`, else the argument names.
        output_names: names of the graph's outputs; for a bare layer `output`, `h_n` and `c_n`, for other models
            `output`, or `output_0`, `output_1`, ... if there are several.
        opset_version: 18, 19 or 20.
        atol, rtol, sizes: as for `verify`.

    Returns:
        The report of the check.

    Raises:
        ValueError, TypeError: an `atol`, `rtol`, `sizes` or `args` that cannot be used.
        DynamicAxisError: an axis was asked to be dynamic that the form or the model fixes.
        ConversionError: a recurrent layer that cannot be exported, such as a subclass with a forward of its own.
        VerificationError: the file's numbers differ from the model's; no file is left.
        ExportError: PyTorch cannot export the model, or an argument is out of range.

    Warns:
        UserWarning: every axis is fixed though the recurrent layers have a batch; or see `verify`.
    """
    path = target(path, "model.onnx")
    _check_options(form, opset_version)
    limits = Limits(atol, rtol)
    model, call = on_cpu(model, Call.of(model, args, kwargs))
    _check_layers(model)
    if is_layer(model):
        axes, (inputs, outputs) = layer_axes(model, call, dynamic_shapes), layer_names(model, call)
    else:
        axes, (inputs, outputs) = _model_axes(model, call, dynamic_shapes, opset_version), (None, None)
    graph = capture(model, call, axes, opset_version=opset_version)
    name_ends(graph.graph, input_names or inputs, output_names or outputs)
    lower(graph, form)
    graph.producer_name, graph.producer_version = "deploy-rnn", deploy_rnn.__version__
    graph.metadata_props["deploy_rnn.form"] = form

    def save_and_check(temporary: Path) -> Report:
        ir.save(graph, temporary)
        return check(temporary, model, call, limits, sizes, shown_as=path)

    return replace_file(path, save_and_check)


def _check_options(form: str, opset_version: int) -> None:
    if form not in FORMS:
        raise ExportError(f"`form` (={form!r}) is unknown; use {' or '.join(map(repr, FORMS))}.")
    if opset_version not in OPSETS:
        raise ExportError(f"`opset_version` (={opset_version!r}) is not supported; use 18, 19 or 20.")


def _check_layers(model: nn.Module) -> None:
    layers = {name: module for name, module in model.named_modules() if is_recurrent(module)}
    if not layers:
        raise ExportError(f"{type(model).__name__} holds no recurrent layer; use torch.onnx.export for it.")
    for name, layer in layers.items():
        dtype = next(layer.parameters()).dtype
        if dtype not in (torch.float32, torch.float64):
            raise ExportError(
                f"`{name or 'model'}` has {dtype} weights; onnxruntime multiplies float32 and float64 on every "
                "provider: export model.float()."
            )


def _model_axes(model: nn.Module, call: Call, dynamic_shapes: Any, opset_version: int) -> list[Axes]:
    """For a whole model: what is asked, or the batch of its recurrent layers wherever that enters."""
    if dynamic_shapes is not None:
        return call.axes(dynamic_shapes)
    axes = find_batch_axes(model, call, opset_version=opset_version)
    if not any(axes):
        warnings.warn(
            "every axis is fixed: the recurrent layers have a batch, but no axis of the inputs is its batch by itself; "
            "give `dynamic_shapes` if one should be dynamic.",
            stacklevel=3,
        )
    return axes
