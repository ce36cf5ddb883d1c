"""`RNN`: `torch.nn.RNN` in plain tensor operations."""

from typing import ClassVar

import torch

from deploy_rnn.nn.cells import CELLS
from deploy_rnn.nn.recurrent import Recurrent


class RNN(Recurrent):
    """Elman recurrence, equal to `torch.nn.RNN` in constructor, parameters, shapes, dropout and errors.

    T time steps, B batch, I input size, H hidden size, D directions (1 or 2), L layers.

        h[t] = act(x[t] @ W_ih.T + b_ih + h[t-1] @ W_hh.T + b_hh)

    forward(input: (T, B, I), hx: (L*D, B, H) or None for zeros, lengths: (B,) or None for T)
        -> output: (T, B, D*H), h_n: (L*D, B, H)

    With `batch_first`, input is (B, T, I) and output (B, T, D*H); the states stay (L*D, B, H). Unbatched: input (T, I),
    hx (L*D, H) -> output (T, D*H), h_n (L*D, H). Row b with `lengths[b]` steps: output is 0 beyond them, h_n is the
    state after the last of them, the reverse direction starts there. A `PackedSequence` gives a `PackedSequence`.

    Any floating dtype that the device multiplies; input, hx and weights share it. Parameters are named as in
    `torch.nn.RNN` (`weight_ih_l0`, `bias_hh_l1_reverse`, ...), so `load_state_dict` works both ways.

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
            3-D, or not of the weights' dtype; lengths that are not whole numbers in 1..T, one for each row.
        RuntimeError: sizes of input or hx that do not fit, or T = 0.
    """

    __constants__: ClassVar = [*Recurrent.__constants__, "nonlinearity"]

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
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype,
            cell=CELLS[mode],
        )  # fmt: skip
        self.mode = mode
        self.nonlinearity = nonlinearity
