"""`GRU`: `torch.nn.GRU` in plain tensor operations."""

from deploy_rnn.nn.cells import CELLS
from deploy_rnn.nn.recurrent import Recurrent


class GRU(Recurrent):
    """Gated recurrent units, equal to `torch.nn.GRU` in constructor, parameters, shapes, dropout and errors.

        r[t] = sigmoid(x[t] @ W_ir.T + b_ir + h[t-1] @ W_hr.T + b_hr)
        z[t] = sigmoid(x[t] @ W_iz.T + b_iz + h[t-1] @ W_hz.T + b_hz)
        n[t] = tanh(x[t] @ W_in.T + b_in + r[t] * (h[t-1] @ W_hn.T + b_hn))
        h[t] = (1 - z[t]) * n[t] + z[t] * h[t-1]

    Shapes, lengths, arguments and errors are those of `deploy_rnn.RNN`, without `nonlinearity`. `weight_ih_l0` is
    (3*H, I), and so on: the rows of r, z and n, one below the other.
    """

    mode = "GRU"
    cell = CELLS["GRU"]
