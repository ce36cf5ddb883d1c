"""What one time step does: one small function per cell, the only place where an equation stands.

A cell takes what the input contributes to this step (already multiplied by W_ih, biases added) and the previous state,
and returns the next state. The leading axis D stacks the directions of a layer, so that both run in one product:

    projected (D, B, H), h (D, B, H), weight_hh (D, H, H), transposed for a right-hand product -> h (D, B, H)

All of them are plain differentiable tensor operations that `torch.jit.script` compiles.
"""

import torch
from torch import Tensor


def tanh(projected: Tensor, h: Tensor, weight_hh: Tensor) -> Tensor:
    """h[t] = tanh(projected[t] + h[t-1] @ W_hh.T)"""
    return torch.tanh(torch.baddbmm(projected, h, weight_hh))


def relu(projected: Tensor, h: Tensor, weight_hh: Tensor) -> Tensor:
    """h[t] = relu(projected[t] + h[t-1] @ W_hh.T)"""
    return torch.relu(torch.baddbmm(projected, h, weight_hh))


CELLS = {"tanh": tanh, "relu": relu}
