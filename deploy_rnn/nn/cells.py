"""What one time step does: one small function per cell, the only place with an equation.

A step takes what the input contributes (already multiplied by W_ih, biases added), the previous states and the
recurrent weights, and returns the next states, the first of which is the layer's output. The leading axis D stacks the
directions of a layer, so that both run in one product. With G gates and output size P (H, or `proj_size`):

    projected (D, B, G*H), states [(D, B, P), (D, B, H) ...], weights [W_hh (D, P, G*H), ...] -> states

Weights are transposed for a right-hand product; a vector is (D, 1, G*H). After W_hh comes b_hh (D, 1, G*H) for a cell
that adds it within the step, then the cell's own parameters, in the order in which it names them, and last W_hr
(D, H, P) where there is a projection. All are plain differentiable tensor
operations that `torch.jit.script` compiles; `docs/adding-a-cell.md` shows how to add one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Shape = Callable[[int], tuple[int, ...]]
"""H -> the shape of a parameter."""

Step = Callable[[Tensor, list[Tensor], list[Tensor]], list[Tensor]]

TORCH_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
"""The weights of each direction of each layer of torch.nn."""


@dataclass(frozen=True)
class Cell:
    """A step, and what the layers must know about it.

    Attributes:
        step: the function.
        gates: G, rows of W_ih and W_hh for each hidden unit.
        states: how many tensors it carries from step to step.
        bias_in_step: whether b_hh is added within the step, and not beforehand to all steps.
        diagonal: whether W_hh is a vector (G*H,), by which each unit multiplies its own state.
        projection: whether it multiplies its output by W_hr where the layer has a `proj_size`.
        name: what errors call the layer; that of its class if empty.
        autocast_on_cpu: whether the layer computes in autocast's dtype on the CPU too, as RNN and LSTM of `torch.nn`
            do; its GRU keeps the dtype of the weights there.
        parameters: what a step needs besides W_hh and the biases, such as the gain of a layer norm: a name -> its
            shape, as a function of H. Each direction of each layer has its own, called `gain_l0`, `gain_l0_reverse` and
            so on. A vector (N,) reaches the step as (D, 1, N), a matrix (N, M) as (D, M, N).
        initial: a name among `parameters` -> the number that all its elements start from; without one, they are drawn
            as all weights are.

    Raises:
        ValueError: a name in `parameters` that is not a Python name, or is that of another weight; a name in `initial`
            that is not in `parameters`.
    """

    step: Step
    gates: int = 1
    states: int = 1
    bias_in_step: bool = False
    diagonal: bool = False
    projection: bool = False
    name: str = ""
    autocast_on_cpu: bool = True
    parameters: Mapping[str, Shape] = field(default_factory=dict, hash=False)
    initial: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in self.parameters:
            if not name.isidentifier() or name in TORCH_WEIGHTS:
                taken = ", ".join(TORCH_WEIGHTS)
                raise ValueError(
                    f"`parameters` has {name!r}, which must be a Python name, and not one of {taken}."
                )
        for name in self.initial:
            if name not in self.parameters:
                raise ValueError(f"`initial` has {name!r}, which must be one of `parameters`.")


def tanh(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """h[t] = tanh(projected[t] + h[t-1] @ W_hh.T)"""
    return [torch.tanh(torch.baddbmm(projected, states[0], weights[0]))]


def relu(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """h[t] = relu(projected[t] + h[t-1] @ W_hh.T)"""
    return [torch.relu(torch.baddbmm(projected, states[0], weights[0]))]


def gru(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """r, z = sigmoid(projected_rz[t] + (h[t-1] @ W_hh.T + b_hh)_rz)
    n = tanh(projected_n[t] + r * (h[t-1] @ W_hh.T + b_hh)_n)
    h[t] = (1 - z) * n + z * h[t-1]
    """
    h = states[0]
    hidden = torch.baddbmm(weights[1], h, weights[0])  # (D, B, 3*H)
    size = 2 * h.size(-1)
    r, z = torch.sigmoid(projected[..., :size] + hidden[..., :size]).chunk(2, -1)
    n = torch.tanh(torch.addcmul(projected[..., size:], r, hidden[..., size:]))
    return [torch.lerp(n, h, z)]


def lstm(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """i, f, o = sigmoid(...), g = tanh(...) of the four parts of projected[t] + h[t-1] @ W_hh.T
    c[t] = f * c[t-1] + i * g
    h[t] = o * tanh(c[t]), times W_hr.T where there is a projection
    """
    i, f, g, o = torch.baddbmm(projected, states[0], weights[0]).chunk(4, -1)  # (D, B, H) each
    c = torch.addcmul(torch.sigmoid(f) * states[1], torch.sigmoid(i), torch.tanh(g))
    h = torch.sigmoid(o) * torch.tanh(c)
    if len(weights) > 1:
        h = torch.bmm(h, weights[1])  # (D, B, P)
    return [h, c]


CELLS = {
    "RNN_TANH": Cell(tanh, name="RNN"),
    "RNN_RELU": Cell(relu, name="RNN"),
    "GRU": Cell(gru, gates=3, bias_in_step=True, name="GRU", autocast_on_cpu=False),
    "LSTM": Cell(lstm, gates=4, states=2, projection=True, name="LSTM"),
}
"""The cells of torch.nn, by the `mode` of its layers."""
