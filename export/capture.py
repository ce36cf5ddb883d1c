"""A PyTorch model becomes an ONNX graph in which each recurrent stack is still one node."""

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from deploy_rnn.conversion import replace_layers
from deploy_rnn.errors import DynamicAxisError, ExportError

from .call import Call
from .stack import CapturedRNN, Stack, stack_nodes


def capture(
    model: nn.Module,
    call: Call,
    *,
    dynamic_shapes: Any,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int,
) -> ir.Model:
    """Trace a copy of `model`, in evaluation mode, into ONNX with its recurrent stacks as `deploy_rnn::RNN` nodes.

    Raises:
        ConversionError: a recurrent layer that cannot be replaced.
        DynamicAxisError: an axis in `dynamic_shapes` that the model itself fixes.
        ExportError: torch.export or torch.onnx cannot take the model; the cause is theirs.
    """
    captured = replace_layers(copy.deepcopy(model), CapturedRNN).eval()
    with _quiet():
        try:
            program = torch.onnx.export(
                captured,
                call.args,
                kwargs=call.kwargs,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                opset_version=opset_version,
                verbose=False,
            )
        except Exception as error:  # torch raises many types here
            raise _explained(error) from error
    assert program is not None
    return program.model


def find_batch_axes(model: nn.Module, call: Call, *, opset_version: int) -> dict[str, Any] | None:
    """`dynamic_shapes` that open the batch axis, called "B", wherever it enters the model, and no other axis.

    The model is traced once with every axis open; the axis that then reaches a recurrent stack as its batch is looked
    up among the inputs. None where no input has it.
    """
    every_axis = [dict.fromkeys(range(tensor.dim()), torch.export.Dim.AUTO) for tensor in call.tensors]
    graph = capture(model, call, dynamic_shapes=call.shapes(every_axis), opset_version=opset_version).graph
    batches = {str(Stack.of(node).batch) for node in stack_nodes(graph)}
    found = [
        {
            axis: "B"
            for axis, size in enumerate(value.shape or ())
            if isinstance(size, ir.SymbolicDim) and str(size) in batches
        }
        for value in graph.inputs
    ]
    return call.shapes(found) if any(found) else None


def _explained(error: Exception) -> ExportError:
    """Torch's error in one paragraph: its first cause, and what to do if that is a fixed axis."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    said = str(error).strip()
    fixed = re.findall(r"inferred a static shape of (\d+) for dimension inputs\['(\w+)'\]\.shape\[(\d+)\]", said)
    if fixed:
        size, name, axis = fixed[0]
        return DynamicAxisError(
            f"axis {axis} of `{name}` cannot be dynamic: the model fixes it at {size}; "
            "leave it out of `dynamic_shapes`."
        )
    return ExportError(f"PyTorch could not export the model: {type(error).__name__}: {said}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.onnx's remarks about itself: optional packages it lacks, and its own deprecated calls."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=UserWarning, message="# The axis name: .* will not be used")
            yield
    finally:
        registration.setLevel(level)
