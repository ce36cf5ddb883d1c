"""`RNNCell`, `GRUCell`, `LSTMCell`: one step of a layer, those of `torch.nn` in plain tensor operations.

Each inherits the constructor, the parameters and their names from its namesake, so that code which asks for the class
of a cell gets the same answer. The equations are those of `cells`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from deploy_rnn.nn.cells import gru, lstm, relu, tanh
from deploy_rnn.nn.recurrent import right_hand


class RNNCell(nn.RNNCell):
    """One step of an Elman recurrence, equal to `torch.nn.RNNCell` in constructor, parameters, shapes and errors.

    B batch, I input size, H hidden size.

        h' = act(x @ W_ih.T + b_ih + h @ W_hh.T + b_hh)

    forward(input: (B, I), hx: (B, H) or None for zeros) -> h': (B, H)

    Unbatched: input (I,), hx (H,) -> (H,).

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        bias: whether b_ih and b_hh exist.
        nonlinearity: act, "tanh" or "relu".

    Raises:
        ValueError: an input or a state that is not 1-D or 2-D.
        RuntimeError: sizes that do not fit, or an unknown nonlinearity.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        _check_rank("RNNCell", "input", input)
        if hx is not None:
            _check_rank("RNNCell", "hidden", hx)
        rows, h = _batched(input, hx, self.hidden_size)
        _check_sizes(rows, [h], self.input_size, self.hidden_size)
        bias = None if self.bias_ih is None else self.bias_ih + self.bias_hh
        projected = F.linear(rows, self.weight_ih, bias).unsqueeze(0)  # (1, B, H)
        weights = [right_hand([self.weight_hh])]
        if self.nonlinearity == "tanh":
            new_h = tanh(projected, [h.unsqueeze(0)], weights)[0]
        elif self.nonlinearity == "relu":
            new_h = relu(projected, [h.unsqueeze(0)], weights)[0]
        else:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return _unbatched(new_h.squeeze(0), input)


class GRUCell(nn.GRUCell):
    """One step of gated recurrent units, equal to `torch.nn.GRUCell`; the equations are those of `deploy_rnn.GRU`.

    Shapes, arguments and errors are those of `deploy_rnn.RNNCell`, without `nonlinearity`.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        _check_rank("GRUCell", "input", input)
        if hx is not None:
            _check_rank("GRUCell", "hidden", hx)
        rows, h = _batched(input, hx, self.hidden_size)
        _check_sizes(rows, [h], self.input_size, self.hidden_size)
        projected = F.linear(rows, self.weight_ih, self.bias_ih).unsqueeze(0)  # (1, B, 3*H)
        if self.bias_hh is None:
            bias = self.weight_hh.new_zeros([1, 1, 3 * self.hidden_size])
        else:
            bias = right_hand([self.bias_hh])
        # Under autocast the product is in half precision; the state keeps its dtype, as in torch.nn.
        dtype = h.dtype
        if dtype != projected.dtype:
            h = h.to(projected.dtype)
        new_h = gru(projected, [h.unsqueeze(0)], [right_hand([self.weight_hh]), bias])[0]
        if dtype != projected.dtype:
            new_h = new_h.to(dtype)
        return _unbatched(new_h.squeeze(0), input)


class LSTMCell(nn.LSTMCell):
    """One step of long short-term memory, equal to `torch.nn.LSTMCell`; the equations are those of `deploy_rnn.LSTM`.

    forward(input: (B, I), hx: ((B, H), (B, H)) or None for zeros) -> h': (B, H), c': (B, H)

    Arguments and errors are otherwise those of `deploy_rnn.RNNCell`, without `nonlinearity`.
    """

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        _check_rank("LSTMCell", "input", input)
        if hx is None:
            rows, h = _batched(input, None, self.hidden_size)
            c = h
        else:
            _check_rank("LSTMCell", "hx[0]", hx[0])
            _check_rank("LSTMCell", "hx[1]", hx[1])
            rows, h = _batched(input, hx[0], self.hidden_size)
            c = _batched(input, hx[1], self.hidden_size)[1]
        _check_sizes(rows, [h, c], self.input_size, self.hidden_size)
        bias = None if self.bias_ih is None else self.bias_ih + self.bias_hh
        projected = F.linear(rows, self.weight_ih, bias).unsqueeze(0)  # (1, B, 4*H)
        weights = [right_hand([self.weight_hh])]
        new_h, new_c = lstm(projected, [h.unsqueeze(0), c.unsqueeze(0)], weights)
        return _unbatched(new_h.squeeze(0), input), _unbatched(new_c.squeeze(0), input)


CELL_MODULES: dict[type[nn.Module], type[nn.RNNCellBase]] = {
    nn.RNNCell: RNNCell,
    nn.GRUCell: GRUCell,
    nn.LSTMCell: LSTMCell,
}
"""What each cell of `torch.nn` becomes."""


def _batched(input: Tensor, state: Tensor | None, hidden_size: int) -> tuple[Tensor, Tensor]:
    """The input as (B, I), and a state as (B, H): zeros if it is None."""
    is_batched = input.dim() == 2
    rows = input if is_batched else input.unsqueeze(0)
    if state is None:
        return rows, rows.new_zeros([rows.size(0), hidden_size])
    return rows, state if is_batched else state.unsqueeze(0)


def _unbatched(state: Tensor, input: Tensor) -> Tensor:
    """A state (B, H), or (H,) if the input is one row without a batch."""
    return state if input.dim() == 2 else state.squeeze(0)


# What `torch.nn` refuses, in its words and in its order.


def _check_rank(name: str, what: str, tensor: Tensor) -> None:
    if tensor.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected {what} to be 1D or 2D, got {tensor.dim()}D instead")


def _check_sizes(rows: Tensor, states: list[Tensor], input_size: int, hidden_size: int) -> None:
    if rows.size(1) != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {rows.size(1)} expected {input_size}"
        )
    for number, state in enumerate(states):
        if state.dim() != 2:  # one row of states for many rows of input, or the reverse
            raise RuntimeError(
                f"Expected 2D hidden{number} (batch x hidden_size), but got {state.dim()}D tensor"
            )
        if state.size(0) != rows.size(0):
            raise RuntimeError(
                f"Input batch size {rows.size(0)} doesn't match hidden{number} batch size {state.size(0)}"
            )
        if state.size(1) != hidden_size:
            raise RuntimeError(
                f"hidden{number} has inconsistent hidden_size: got {state.size(1)}, expected {hidden_size}"
            )
