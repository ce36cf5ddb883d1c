"""A recurrent layer exported by itself, whose names, axes and states are known."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.nn.lstm import LSTM
from deploy_rnn.nn.recurrent import Recurrent


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
        first: bool = self.layer.batch_first
        packed = pack_padded_sequence(input, lengths, first, enforce_sorted=False)
        output, final = self.layer(packed, hx)
        return pad_packed_sequence(output, first, total_length=input.size(1 if first else 0))[0], final


def with_lengths(model: nn.Module, kwargs: Mapping[str, Any] | None) -> nn.Module:
    """`model`, taking `lengths` if these are among `kwargs` and it is a layer of `torch.nn`."""
    if isinstance(model, nn.RNNBase) and is_layer(model) and (kwargs or {}).get("lengths") is not None:
        return WithLengths(model).train(model.training)
    return model


def is_layer(model: nn.Module) -> bool:
    """Whether the model is a recurrent layer, called and answering as those of `torch.nn` do."""
    model = _base(model)
    if isinstance(model, Recurrent):
        return type(model).forward in (Recurrent.forward, LSTM.forward)
    return isinstance(model, (nn.RNN, nn.GRU, nn.LSTM))


def state_names(layer: nn.Module) -> list[str]:
    """h, and c for a layer of two states."""
    return ["h", "c"] if isinstance(_base(layer), (nn.LSTM, LSTM)) else ["h"]


def with_zero_states(model: nn.Module, call: ExampleCall) -> ExampleCall:
    """For a bare layer: the call with the states that it would start with."""
    if not is_layer(model) or call.arguments.get("hx") is not None:
        return call
    with torch.no_grad():
        final = model(*call.bound.args, **call.bound.kwargs)[1]
    return call.with_argument("hx", pytree.tree_map(torch.zeros_like, final))


def layer_names(layer: nn.Module, call: ExampleCall) -> tuple[list[str], list[str]]:
    """What the graph takes and gives: input, h0 (, c0) if there are states -> output, h_n (, c_n)."""
    names = state_names(layer)
    takes = {"input": ["input"], "hx": [f"{name}0" for name in names], "lengths": ["lengths"]}
    inputs = [name for argument in call.arguments for name in takes[argument]]
    return inputs, ["output", *(f"{name}_n" for name in names)]


def layer_axes(layer: nn.Module, call: ExampleCall, dynamic_shapes: Any, *, time: bool) -> list[Axes]:
    """The batch axis, and with `time` also that of the steps, is open unless something else is asked; whatever has a
    batch shares that of the input.
    """
    batched, batch = call.tensors[0].dim() == 3, 0 if _base(layer).batch_first else 1
    if dynamic_shapes is None:
        steps = 1 - batch if batched else 0
        dynamic_shapes = {"input": ({batch: "B"} if batched else {}) | ({steps: "T"} if time else {})}
    axes = call.axes(_by_argument(layer, dynamic_shapes))
    if batched and batch in axes[0]:
        for number, tensor in enumerate(call.tensors[1:], start=1):
            axes[number] = axes[number] or {1 if tensor.dim() == 3 else 0: axes[0][batch]}
    return axes


def _by_argument(layer: nn.Module, dynamic_shapes: Any) -> Any:
    """h0 and c0 are names of the graph's; the argument is hx."""
    states = [f"{name}0" for name in state_names(layer)]
    if not isinstance(dynamic_shapes, Mapping) or not set(states) & dynamic_shapes.keys():
        return dynamic_shapes
    others = {name: asked for name, asked in dynamic_shapes.items() if name not in states}
    asked = tuple(dynamic_shapes.get(name) for name in states)
    return {**others, "hx": asked if len(asked) > 1 else asked[0]}


def _base(model: nn.Module) -> Any:
    return model.layer if isinstance(model, WithLengths) else model
