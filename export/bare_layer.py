"""A bare layer, exported by itself: its names, axes and states are known beforehand."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.nn.lstm import LSTM
from deploy_rnn.nn.recurrent import is_plain_layer


class WithLengths(nn.Module):
    """A layer of `torch.nn` that takes `lengths`, as those of `deploy_rnn` do.

    forward(input: (T, B, I), hx: as the layer's, lengths: (B,)) -> output: (T, B, D*P), zeros beyond each row; the
    states of each row's own last step.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor, hx: Any = None, lengths: Tensor | None = None) -> Any:
        assert lengths is not None
        batch_first: bool = self.layer.batch_first
        steps = input.size(1 if batch_first else 0)
        packed = pack_padded_sequence(input, lengths, batch_first, enforce_sorted=False)
        packed_output, final = self.layer(packed, hx)
        output, _ = pad_packed_sequence(packed_output, batch_first, total_length=steps)
        return output, final


def with_lengths(model: nn.Module, kwargs: Mapping[str, Any] | None) -> nn.Module:
    """Wrap a layer of `torch.nn` if `lengths` are among `kwargs`; return any other model as it is."""
    has_lengths = isinstance(kwargs, Mapping) and kwargs.get("lengths") is not None
    if has_lengths and isinstance(model, nn.RNNBase) and is_layer(model):
        return WithLengths(model).train(model.training)
    return model


def is_layer(model: nn.Module) -> bool:
    """Whether the model is a recurrent layer with the arguments and results of those of `torch.nn`."""
    return is_plain_layer(_unwrap(model))


def state_names(layer: nn.Module) -> list[str]:
    """h, and c for a layer of two states."""
    return ["h", "c"] if isinstance(_unwrap(layer), (nn.LSTM, LSTM)) else ["h"]


def with_zero_states(model: nn.Module, call: ExampleCall) -> ExampleCall:
    """For a bare layer called without states: the call with the zeros that it would start from."""
    if not is_layer(model) or call.arguments.get("hx") is not None:
        return call
    with torch.no_grad():
        _, final = model(*call.bound.args, **call.bound.kwargs)
    zeros = pytree.tree_map(torch.zeros_like, final)
    return call.with_argument("hx", zeros)


def layer_names(layer: nn.Module, call: ExampleCall) -> tuple[list[str], list[str]]:
    """The inputs and outputs of the graph: input, h0 (, c0) if there are states, lengths -> output, h_n (, c_n)."""
    names = state_names(layer)
    names_of = {"input": ["input"], "hx": [f"{name}0" for name in names], "lengths": ["lengths"]}
    inputs: list[str] = []
    for argument in call.arguments:
        inputs += names_of[argument]
    outputs = ["output", *(f"{name}_n" for name in names)]
    return inputs, outputs


def layer_axes(
    layer: nn.Module, call: ExampleCall, dynamic_shapes: Any, *, time: bool
) -> list[Axes]:
    """What is dynamic in each tensor of the call.

    Without `dynamic_shapes` that is the batch axis of the input, called "B", and with `time` its time axis, called "T".
    Everything else that has a batch shares that of the input.
    """
    is_batched = call.tensors[0].dim() == 3
    batch = 0 if _unwrap(layer).batch_first else 1
    if dynamic_shapes is None:
        input_axes = {}
        if is_batched:
            input_axes[batch] = "B"
        if time:
            input_axes[1 - batch if is_batched else 0] = "T"
        dynamic_shapes = {"input": input_axes}
    axes = call.axes(_by_argument(layer, dynamic_shapes))
    if is_batched and batch in axes[0]:
        for number, tensor in enumerate(call.tensors[1:], start=1):
            batch_of_tensor = 1 if tensor.dim() == 3 else 0  # states (L*D, B, H), lengths (B,)
            axes[number] = axes[number] or {batch_of_tensor: axes[0][batch]}
    return axes


def _by_argument(layer: nn.Module, dynamic_shapes: Any) -> Any:
    """`dynamic_shapes` by the arguments of the layer: h0 and c0 are names of the graph, the argument is hx."""
    states = [f"{name}0" for name in state_names(layer)]
    if not isinstance(dynamic_shapes, Mapping) or not set(states) & dynamic_shapes.keys():
        return dynamic_shapes
    arguments = {name: shapes for name, shapes in dynamic_shapes.items() if name not in states}
    state_shapes = tuple(dynamic_shapes.get(name) for name in states)
    arguments["hx"] = state_shapes if len(states) > 1 else state_shapes[0]
    return arguments


def _unwrap(model: nn.Module) -> Any:
    return model.layer if isinstance(model, WithLengths) else model
