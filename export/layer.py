"""A recurrent layer exported by itself, whose names, axes and states are known."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from deploy_rnn.call import Axes, Call
from deploy_rnn.lstm import LSTM
from deploy_rnn.recurrent import Recurrent


def is_layer(model: nn.Module) -> bool:
    """Whether the model is a recurrent layer, called and answering as those of `torch.nn` do."""
    if isinstance(model, Recurrent):
        return type(model).forward in (Recurrent.forward, LSTM.forward)
    return isinstance(model, (nn.RNN, nn.GRU, nn.LSTM))


def state_names(layer: nn.Module) -> list[str]:
    """h, and c for a layer of two states."""
    return ["h", "c"] if isinstance(layer, (nn.LSTM, LSTM)) else ["h"]


def layer_names(layer: nn.Module, call: Call) -> tuple[list[str], list[str]]:
    """What the graph takes and gives: input, h0 (, c0) if there are states -> output, h_n (, c_n)."""
    names = state_names(layer)
    takes = {"input": ["input"], "hx": [f"{name}0" for name in names], "lengths": ["lengths"]}
    inputs = [name for argument in call.arguments for name in takes[argument]]
    return inputs, ["output", *(f"{name}_n" for name in names)]


def layer_axes(layer: nn.Module, call: Call, dynamic_shapes: Any) -> list[Axes]:
    """The batch axis is open unless something else is asked, and whatever has a batch shares that of the input."""
    batched, batch = call.tensors[0].dim() == 3, 0 if layer.batch_first else 1
    if dynamic_shapes is None:
        dynamic_shapes = {"input": {batch: "B"}} if batched else {}
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
