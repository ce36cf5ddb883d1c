"""The time loop under `torch.compile`, in the one place where it can be changed.

A Python loop would be unrolled into the graph: compile time grows with T, and every new T compiles again. PyTorch's
`scan` operator keeps it a loop, so that one compilation serves every length. It is a prototype, hence private.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

Cell = Callable[[Tensor, Tensor, Tensor], Tensor]


def scan_steps(cell: Cell, projected: Tensor, h: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    """Run `cell` over the first axis of `projected`, differentiably.

    projected (T, D, B, H), h (D, B, H), weight_hh (D, H, H) -> every state (T, D, B, H), the last one (D, B, H)
    """
    if torch.is_grad_enabled():
        states: Tensor = _Differentiable.apply(cell, projected, h, weight_hh)  # type: ignore[no-untyped-call]
    else:
        states = _scan(cell, projected, h, weight_hh)
    return states, states[-1]


def _scan(cell: Cell, projected: Tensor, h: Tensor, weight_hh: Tensor) -> Tensor:
    def step(h: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        h = cell(projected, h, weight_hh)
        return h, h.clone()  # scan refuses a carry that is also an output

    _, states = scan(step, h, projected)
    return states  # type: ignore[no-any-return]


class _Differentiable(torch.autograd.Function):
    """`_scan` with its own backward, for any cell.

    `scan` could differentiate itself, but sums the gradient of weight_hh into a buffer that inductor shares between
    layers of one shape, and returns wrong numbers without a word (torch 2.13, two bidirectional layers). Here:

    1. The gradient of each state is carried backwards through time, one vector-Jacobian product of the cell per step.
    2. The weights' gradient needs no order: all steps at once, as a batch of T*B, outside the loop.
    """

    @staticmethod
    def forward(ctx: Any, cell: Cell, projected: Tensor, h: Tensor, weight_hh: Tensor) -> Tensor:
        states = _scan(cell, projected, h, weight_hh)
        ctx.cell = cell
        ctx.save_for_backward(projected, h, weight_hh, states)
        return states

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        cell = ctx.cell
        projected, h, weight_hh, states = ctx.saved_tensors
        previous = torch.cat([h.unsqueeze(0), states[:-1]])  # (T, D, B, H)

        def step(grad_h: Tensor, at: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            grad_state, projected, previous = at
            grad = grad_state + grad_h
            pull: Any = torch.func.vjp(lambda h: cell(projected, h, weight_hh), previous)[1]
            return pull(grad)[0], grad

        # Case 1.
        grad_h, grads = scan(step, torch.zeros_like(h), (grad_states, projected, previous), reverse=True)
        # Case 2.
        flat = [each.transpose(0, 1).flatten(1, 2) for each in (projected, previous, grads)]  # (D, T*B, H)
        pull: Any = torch.func.vjp(lambda p, w: cell(p, flat[1], w), flat[0], weight_hh)[1]
        grad_projected, grad_weight = pull(flat[2])
        shape = (projected.size(0), projected.size(2))
        return None, grad_projected.unflatten(1, shape).transpose(0, 1), grad_h, grad_weight
