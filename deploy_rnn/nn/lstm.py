"""`LSTM`: `torch.nn.LSTM` in plain tensor operations."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.nn.cells import CELLS
from deploy_rnn.nn.recurrent import Recurrent


class LSTM(Recurrent):
    """Long short-term memory, equal to `torch.nn.LSTM` in constructor, parameters, shapes, dropout and errors.

        i, f, o = sigmoid(x[t] @ W_i..T + b_i. + h[t-1] @ W_h..T + b_h.), one each
        g[t] = tanh(x[t] @ W_ig.T + b_ig + h[t-1] @ W_hg.T + b_hg)
        c[t] = f[t] * c[t-1] + i[t] * g[t]
        h[t] = o[t] * tanh(c[t]), times W_hr.T with `proj_size`

    forward(input: (T, B, I), hx: ((L*D, B, P), (L*D, B, H)) or None for zeros, lengths: (B,) or None for T)
        -> output: (T, B, D*P), (h_n: (L*D, B, P), c_n: (L*D, B, H))

    P is `proj_size` if that is not 0, else H. Layouts, lengths, arguments and errors are otherwise those of
    `deploy_rnn.RNN`, without `nonlinearity`. `weight_ih_l0` is (4*H, I), and so on: the rows of i, f, g and o, one
    below the other.

    Args:
        proj_size: features of the output, below H; 0 for no projection.
    """

    mode = "LSTM"
    cell = CELLS["LSTM"]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype,
            proj_size=proj_size,
        )  # fmt: skip

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if not is_scripting():  # noqa: SIM102
            if isinstance(input, PackedSequence):
                return cast(Any, self._forward_packed(input, hx, lengths))
        return self._forward_padded(input, hx, lengths)

    @torch.jit.export
    def _forward_padded(  # type: ignore[override]
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        states: list[Tensor] | None = None
        if hx is not None:
            states = [hx[0], hx[1]]
        output, finals = self._run(input, states, lengths)
        return output, (finals[0], finals[1])

    @torch.jit.export
    def _forward_packed(  # type: ignore[override]
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        states: list[Tensor] | None = None
        if hx is not None:
            states = [hx[0], hx[1]]
        output, finals = self._run_packed(input, states, lengths)
        return output, (finals[0], finals[1])
