"""A model made ready for every form: traced once, its inputs and outputs named."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

import deploy_rnn
from deploy_rnn.checking.example_call import Axes, ExampleCall, on_cpu
from deploy_rnn.errors import ExportError
from deploy_rnn.nn.recurrent import is_recurrent

from ..bare_layer import is_layer, layer_axes, layer_names, with_lengths, with_zero_states
from ..forms.lower import lower
from ..metadata import FileMetadata
from ..options import ExportOptions
from ..stack import Stack, row_lengths, stack_nodes
from .capture import capture, find_axes
from .io_names import name_inputs_and_outputs
from .packing import refuse_packed
from .streaming import check_can_stream, open_states
from .tied_axes import with_tied_axes


@dataclass(frozen=True)
class CapturedModel:
    """A model, an example call of it, and its graph in which each recurrent stack is still one node.

    Attributes:
        model: on the CPU; a layer of `torch.nn` with lengths is wrapped, so that it takes them.
        call: the example, on the CPU.
        graph: as `capture` makes it.
        notes: what the file is to say about itself, but for its form.
    """

    model: nn.Module
    call: ExampleCall
    graph: ir.Model
    metadata: FileMetadata

    @classmethod
    def of(
        cls,
        model: nn.Module,
        args: Any,
        kwargs: Mapping[str, Any] | None,
        options: ExportOptions,
        *,
        dynamic_time: bool,
    ) -> "CapturedModel":
        """Arguments and errors: see `export_onnx`; `dynamic_time`: whether the time axis is open unless asked."""
        opset = options.opset_version
        model = with_lengths(model, kwargs)
        model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
        refuse_packed(call.arguments)
        _check_layers(model)
        if options.streaming:
            check_can_stream(model)
            call = with_zero_states(model, call)
        if is_layer(model):
            axes = layer_axes(model, call, options.dynamic_shapes, time=dynamic_time)
            inputs, outputs = layer_names(model, call)
        else:
            axes = _model_axes(model, call, options.dynamic_shapes, opset, time=dynamic_time)
            inputs, outputs = None, None
        graph = capture(model, call, axes, opset_version=opset)
        name_inputs_and_outputs(graph.graph, options.input_names or inputs, options.output_names or outputs)
        metadata = FileMetadata(lengths=row_lengths(graph.graph))
        if options.streaming:
            metadata = open_states(graph.graph, metadata, lambda: _time_axes(model, call, opset))
        graph.producer_name, graph.producer_version = "deploy-rnn", deploy_rnn.__version__
        return cls(model, call, graph, metadata)

    @property
    def example_steps(self) -> int:
        """T of the example; the largest where stacks differ."""
        sizes = {
            str(size): now
            for value, tensor in zip(self.graph.graph.inputs, self.call.tensors, strict=False)
            for size, now in zip(value.shape or (), tensor.shape, strict=True)
        }
        found = [stack.steps if isinstance(stack.steps, int) else sizes.get(str(stack.steps)) for stack in self._stacks]
        return max(steps for steps in found if steps is not None)

    @property
    def time_names(self) -> frozenset[str]:
        """The dynamic axes that are the steps of a stack."""
        return frozenset(str(stack.steps) for stack in self._stacks if not isinstance(stack.steps, int))

    @property
    def batch_names(self) -> frozenset[str]:
        """The dynamic axes that are the batch of a stack."""
        return frozenset(str(stack.batch) for stack in self._stacks if not isinstance(stack.batch, int))

    @property
    def _stacks(self) -> list[Stack]:
        return [Stack.of(node) for node in stack_nodes(self.graph.graph)]

    def written(self, form: str, *, max_nodes: int) -> ir.Model:
        """In one form; a copy, which shares the weights.

        Raises:
            ExportError: see `lower`.
        """
        graph = self.graph.clone()
        lower(graph, form, max_nodes=max_nodes)
        graph.metadata_props.update(
            FileMetadata(form, self.metadata.lengths, self.metadata.states, self.metadata.time).to_properties()
        )
        return graph


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


def _model_axes(
    model: nn.Module, call: ExampleCall, dynamic_shapes: Any, opset_version: int, *, time: bool
) -> list[Axes]:
    """For a whole model: what is asked, or the batch (and steps) of its recurrent layers wherever these enter."""
    if dynamic_shapes is not None:
        return call.axes(dynamic_shapes)
    axes = with_tied_axes(model, call, find_axes(model, call, time=time, opset_version=opset_version))
    found = {name for each in axes for name in each.values()}
    if missing := [what for what, name in (("a batch", "B"), ("steps", "T"))[: 1 + time] if name not in found]:
        warnings.warn(
            f"{'an' if found else 'every'} axis is fixed: the recurrent layers have {' and '.join(missing)}, but no "
            "axis of the inputs is that by itself; give `dynamic_shapes` if one should be dynamic.",
            stacklevel=4,
        )
    return axes


def _time_axes(model: nn.Module, call: ExampleCall, opset_version: int) -> list[int | None]:
    """Which axis of each of the call's tensors is the steps."""
    if is_layer(model):
        axes = layer_axes(model, call, None, time=True)
    else:
        axes = find_axes(model, call, time=True, opset_version=opset_version)
    return [next((axis for axis, name in each.items() if name.startswith("T")), None) for each in axes]
