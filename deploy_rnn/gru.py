"""`GRU`: `torch.nn.GRU` in plain tensor operations."""

import torch
from torch import nn

from deploy_rnn.cells import CELLS, Cell
from deploy_rnn.recurrent import Recurrent


class GRU(Recurrent):
    """Gated recurrent units, equal to `torch.nn.GRU` in constructor, parameters, shapes, dropout and errors.

        r[t] = sigmoid(x[t] @ W_ir.T + b_ir + h[t-1] @ W_hr.T + b_hr)
        z[t] = sigmoid(x[t] @ W_iz.T + b_iz + h[t-1] @ W_hz.T + b_hz)
        n[t] = tanh(x[t] @ W_in.T + b_in + r[t] * (h[t-1] @ W_hn.T + b_hn))
        h[t] = (1 - z[t]) * n[t] + z[t] * h[t-1]

    Shapes, lengths, arguments and errors are those of `deploy_rnn.RNN`, without `nonlinearity`. `weight_ih_l0` is
    (3*H, I), and so on: the rows of r, z and n, one below the other.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "GRU", CELLS["gru"], input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip

    @classmethod
    def cell_of(cls, module: nn.Module) -> Cell:
        return CELLS["gru"]
