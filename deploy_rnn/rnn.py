"""`RNN`: `torch.nn.RNN` in plain tensor operations, for eager mode, TorchScript, autograd and `torch.compile` alike."""

import copy
import math
import warnings
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from deploy_rnn.cells import CELLS
from deploy_rnn.scan import scan_steps


class RNN(nn.Module):
    """Elman recurrence, equal to `torch.nn.RNN` in constructor, parameters, shapes, dropout and errors.

    T time steps, B batch, I input size, H hidden size, D directions (1 or 2), L layers.

        h[t] = act(x[t] @ W_ih.T + b_ih + h[t-1] @ W_hh.T + b_hh)

    forward(input: (T, B, I), hx: (L*D, B, H) or None for zeros) -> output: (T, B, D*H), h_n: (L*D, B, H)

    With `batch_first`, input is (B, T, I) and output (B, T, D*H); the states stay (L*D, B, H). Unbatched: input (T, I),
    hx (L*D, H) -> output (T, D*H), h_n (L*D, H). Layer 0 reads I features, every later layer D*H. Any floating dtype
    that the device multiplies; input, hx and weights share it. Parameters are named as in `torch.nn.RNN`
    (`weight_ih_l0`, `bias_hh_l1_reverse`, ...), so `load_state_dict` works both ways.

    Args:
        input_size: I, features of one step.
        hidden_size: H, features of one state.
        num_layers: L, layers stacked on one another.
        nonlinearity: act, "tanh" or "relu".
        bias: whether b_ih and b_hh exist.
        batch_first: whether input and output have B before T.
        dropout: probability in [0, 1] of zeroing an element between two layers, in training mode.
        bidirectional: whether each layer also walks the sequence backwards.

    Raises:
        TypeError, ValueError: a constructor argument of the wrong type or out of range; an input that is not 2-D or
            3-D, or not of the weights' dtype.
        RuntimeError: sizes of input or hx that do not fit, or T = 0.
    """

    __constants__: ClassVar = [
        "input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional",
    ]  # fmt: skip

    _scripted_weights: list[Tensor]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_arguments(input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.nonlinearity = nonlinearity
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self._cell = CELLS[nonlinearity]
        for name, shape in self.weight_shapes().items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @classmethod
    def like(cls, module: "nn.RNN | RNN") -> Self:
        """An instance with the parameters (the same objects), hooks, mode and options of `module`."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        dropped = ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights", "mode", "proj_size")
        layer.__dict__.update({name: value for name, value in vars(module).items() if name not in dropped})
        layer._cell = CELLS[module.nonlinearity]
        return layer

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order of `torch.nn.RNN`: layer, direction, ih, hh."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else len(suffixes) * self.hidden_size
            for suffix in suffixes:
                shapes[f"weight_ih_l{layer}{suffix}"] = (self.hidden_size, width)
                shapes[f"weight_hh_l{layer}{suffix}"] = (self.hidden_size, self.hidden_size)
                if self.bias:
                    shapes[f"bias_ih_l{layer}{suffix}"] = (self.hidden_size,)
                    shapes[f"bias_hh_l{layer}{suffix}"] = (self.hidden_size,)
        return shapes

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)); one seed gives the weights of `torch.nn.RNN`."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing to do: there is no cuDNN buffer that the weights must lie in."""

    def extra_repr(self) -> str:
        options = {
            "num_layers": (self.num_layers, 1), "bias": (self.bias, True), "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0), "bidirectional": (self.bidirectional, False),
        }  # fmt: skip
        given = [f"{name}={value}" for name, (value, default) in options.items() if value != default]
        return ", ".join([str(self.input_size), str(self.hidden_size), *given])

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check_forward(input, hx)
        if input.dim() == 2:
            output, h_n = self._stack(input.unsqueeze(1), None if hx is None else hx.unsqueeze(1))
            return output.squeeze(1), h_n.squeeze(1)
        if self.batch_first:
            output, h_n = self._stack(input.transpose(0, 1), hx)
            return output.transpose(0, 1), h_n
        return self._stack(input, hx)

    def _stack(self, input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        """All layers, each over the whole sequence before the next: input (T, B, I), hx (L*D, B, H) or None."""
        directions = 2 if self.bidirectional else 1
        weights = self._weights()
        per_layer = len(weights) // self.num_layers
        if hx is None:
            hx = input.new_zeros(self.num_layers * directions, input.size(1), self.hidden_size)
        finals: list[Tensor] = []
        for layer in range(self.num_layers):
            h = hx[layer * directions : (layer + 1) * directions]  # (D, B, H)
            input, h = self._layer(input, h, weights[layer * per_layer : (layer + 1) * per_layer])
            finals.append(h)
            if layer + 1 < self.num_layers:
                input = F.dropout(input, self.dropout, self.training)
        return input, torch.cat(finals)  # (T, B, D*H), (L*D, B, H)

    def _layer(self, input: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        """One layer, its directions stacked: each reads the sequence in its own order, so both step together."""
        steps, batch = input.size(0), input.size(1)
        kinds = len(weights) // h.size(0)  # weight_ih, weight_hh (, bias_ih, bias_hh) per direction
        walks = torch.stack([input, input.flip(0)]) if self.bidirectional else input.unsqueeze(0)  # (D, T, B, I)
        weight_ih = torch.stack(weights[0::kinds]).transpose(1, 2)  # (D, I, H)
        weight_hh = torch.stack(weights[1::kinds]).transpose(1, 2)  # (D, H, H)
        if self.bias:
            bias = (torch.stack(weights[2::kinds]) + torch.stack(weights[3::kinds])).unsqueeze(1)  # (D, 1, H)
            projected = torch.baddbmm(bias, walks.flatten(1, 2), weight_ih)
        else:
            projected = torch.bmm(walks.flatten(1, 2), weight_ih)  # (D, T*B, H)
        states, h = self._loop(projected.unflatten(1, [steps, batch]).transpose(0, 1), h, weight_hh)  # (T, D, B, H)
        if self.bidirectional:
            # The reverse direction's first state belongs to the last step: back into the order of the input.
            return torch.cat([states[:, 0], states[:, 1].flip(0)], dim=-1), h
        return states[:, 0], h

    def _loop(self, projected: Tensor, h: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
        """projected (T, D, B, H), h (D, B, H) -> every state (T, D, B, H), the last state (D, B, H)"""
        if not is_scripting():  # noqa: SIM102  TorchScript would compile both sides of an `and`
            if torch.compiler.is_compiling():
                return scan_steps(self._cell, projected, h, weight_hh)
        states: list[Tensor] = []
        for step in projected.unbind(0):
            h = self._cell(step, h, weight_hh)
            states.append(h)
        return torch.stack(states), h

    def _weights(self) -> list[Tensor]:
        if is_scripting():
            return self._scripted_weights
        return [getattr(self, name) for name in self.weight_shapes()]

    def __prepare_scriptable__(self) -> "RNN":
        """What `torch.jit.script` compiles in our place: the weights also as a list, since it has no `getattr`."""
        twin = copy.copy(self)
        twin._scripted_weights = self._weights()
        return twin

    def _check_forward(self, input: Tensor, hx: Tensor | None) -> None:
        if input.dim() not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
        if hx is not None and hx.dim() != input.dim():
            batched = "For batched 3-D" if input.dim() == 3 else "For unbatched 2-D"
            raise RuntimeError(f"{batched} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
        self._check_dtype(input)
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )
        time = 1 if self.batch_first and input.dim() == 3 else 0
        if hx is not None:
            self._check_state(hx, input.size(1 - time) if input.dim() == 3 else 1)
        if input.size(time) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

    def _check_dtype(self, input: Tensor) -> None:
        if not is_scripting():
            weight = self._weights()[0]
            if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
                raise ValueError(
                    f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). Convert input: "
                    f"input.to({weight.dtype}), or convert model: model.to({input.dtype})"
                )

    def _check_state(self, hx: Tensor, batch: int) -> None:
        states = self.num_layers * (2 if self.bidirectional else 1)
        got = [hx.size(0), batch if hx.dim() == 2 else hx.size(1), hx.size(-1)]
        if got != [states, batch, self.hidden_size]:
            raise RuntimeError(f"Expected hidden size ({states}, {batch}, {self.hidden_size}), got {got}")


def _check_arguments(
    input_size: object,
    hidden_size: object,
    num_layers: int,
    nonlinearity: object,
    bias: object,
    batch_first: object,
    dropout: object,
) -> None:
    """What `torch.nn.RNN` checks, in its words."""
    if nonlinearity not in CELLS:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
            f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=3,
        )
    for name, flag in {"bias": bias, "batch_first": batch_first}.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
    for name, size in {"input_size": input_size, "hidden_size": hidden_size}.items():
        if not isinstance(size, int):
            raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")
