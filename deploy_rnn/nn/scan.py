"""The time loop under `torch.compile`, in the one place where it can be changed.

A Python loop would be unrolled into the graph: compile time grows with T, and every new T compiles again. PyTorch's
`scan` operator keeps it a loop, so that one compilation serves every length. It is a prototype, hence private.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan, scan_op

from deploy_rnn.nn.cells import Step


def scan_steps(
    step: Step, projected: Tensor, mask: Tensor | None, states: list[Tensor], weights: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Run `step` over the first axis of `projected`, differentiably.

    projected (T, D, B, G*H), mask (T, 1, B, 1) or None for every row at every step, states (D, B, P) ..., weights
    -> every output (T, D, B, P), the last states
    """
    if projected.size(0) == 1:
        states = _advance(step, projected[0], None if mask is None else mask[0], states, weights)
        return states[0].unsqueeze(0), states
    if torch.is_grad_enabled():
        sequences = _Differentiable.apply(step, len(states), projected, mask, *states, *weights)  # type: ignore[no-untyped-call]
        return sequences[0], [sequence[-1] for sequence in sequences]
    last, sequences = _scan(step, projected, mask, states, weights, kept=1)
    return sequences[0], last


def _scan(
    step: Step,
    projected: Tensor,
    mask: Tensor | None,
    states: list[Tensor],
    weights: list[Tensor],
    *,
    kept: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """The last states, and those of every step for the first `kept` kinds of state."""
    count, walked = len(states), [projected] if mask is None else [projected, mask]

    def turn(before: list[Tensor], at: Sequence[Tensor], weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The states after one step, and copies of those to keep: scan refuses a carry that is also an output."""
        after = _advance(step, at[0], at[1] if mask is not None else None, before, weights)
        return after, [state.clone() for state in after[:kept]]

    if not torch.compiler.is_exporting() or torch.compiler.is_dynamo_compiling():
        return scan(lambda states, at: turn(states, at, weights), states, walked)

    # torch.export: the operator itself, told of everything that its body uses.
    # 1. `scan` would have torch.compile trace the body. The sizes that it remembers from earlier calls then fix
    #    axes that are to be dynamic, depending on what else the process has run (torch 2.13).
    # 2. Inductor computes the shape of the outputs from those inputs that are sizes, and from nothing else.
    def exported(*args: Any) -> list[Tensor]:
        before, at, held = args[:count], args[count:][: len(walked)], args[count:][len(walked) :][: len(weights)]
        return [each for kind in turn(list(before), at, list(held)) for each in kind]

    found = list(scan_op(exported, states, walked, (*weights, *_symbols(projected.shape))))
    return found[:count], found[count:]


def _symbols(shape: Sequence[Any]) -> list[torch.SymInt]:
    """Every unknown in `shape`, by itself: s0 and s1 for an axis of s0*s1."""
    unknown: dict[Any, torch.SymInt] = {}
    for size in shape:
        if isinstance(size, torch.SymInt):
            env, symbols = size.node.shape_env, size.node.expr.free_symbols
            unknown |= {symbol: env.create_symintnode(symbol, hint=None) for symbol in symbols}
    return list(unknown.values())


def _advance(
    step: Step, projected: Tensor, mask: Tensor | None, states: list[Tensor], weights: list[Tensor]
) -> list[Tensor]:
    """One step; a row that has ended keeps its states."""
    new = step(projected, states, weights)
    if mask is None:
        return new
    return [torch.where(mask, after, before) for after, before in zip(new, states, strict=True)]


class _Differentiable(torch.autograd.Function):
    """`_scan` with its own backward, for any cell.

    `scan` could differentiate itself, but sums the gradient of the weights into a buffer that inductor shares between
    layers of one shape, and returns wrong numbers without a word (torch 2.13, two bidirectional layers). Here:

    1. The gradients of the states are carried backwards through time, one vector-Jacobian product per step.
    2. The weights' gradients need no order: all steps at once, as a batch of T*B, outside the loop.
    """

    @staticmethod
    def forward(
        ctx: Any, step: Step, count: int, projected: Tensor, mask: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        states, weights = list(tensors[:count]), list(tensors[count:])
        sequences = _scan(step, projected, mask, states, weights, kept=count)[1]
        ctx.step, ctx.count = step, count
        ctx.save_for_backward(projected, mask, *tensors, *sequences)
        return tuple(sequences)

    @staticmethod
    def backward(ctx: Any, *grad_sequences: Tensor) -> tuple[Tensor | None, ...]:
        step, count = ctx.step, ctx.count
        projected, mask, *tensors = ctx.saved_tensors
        states, weights, sequences = tensors[:count], tensors[count:-count], tensors[-count:]
        previous = [  # (T, D, B, P), ...
            torch.cat([state.unsqueeze(0), sequence[:-1]]) for state, sequence in zip(states, sequences, strict=True)
        ]

        def body(carried: list[Tensor], at: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            grads = [one + other for one, other in zip(carried, at[:count], strict=True)]
            before, now = at[count : 2 * count], at[2 * count :]
            of_step = now[1] if mask is not None else None
            pull: Any = torch.func.vjp(lambda states: _advance(step, now[0], of_step, states, weights), before)[1]
            return pull(grads)[0], grads

        # Case 1.
        walked = [*grad_sequences, *previous, projected] + ([] if mask is None else [mask])
        grad_states, grads = scan(body, [zeros(state.shape, projected) for state in states], walked, reverse=True)
        # Case 2.
        if mask is not None:
            grads = [grad * mask for grad in grads]  # a row that has ended does not use the weights
        flat_previous = [_flat(each) for each in previous]
        pull: Any = torch.func.vjp(lambda p, w: step(p, flat_previous, w), _flat(projected), weights)[1]
        grad_projected, grad_weights = pull([_flat(grad) for grad in grads])
        shape = (projected.size(0), projected.size(2))
        grad_projected = grad_projected.unflatten(1, shape).transpose(0, 1)
        return None, None, grad_projected, None, *grad_states, *grad_weights


def zeros(shape: Sequence[int], data: Tensor) -> Tensor:
    """Zeros that the compiler does not know to be zeros.

    A loop's first carry is overwritten by the loop. Inductor keeps one buffer for equal constants, so that a constant
    carry's overwritten buffer would be read wherever else the graph has zeros of that shape (torch 2.13).
    """
    one = data.flatten()[:1].sum()  # of no element in an empty batch
    never = torch.logical_and(one != one, one == one)
    return never.to(data.dtype).expand(shape).clone(memory_format=torch.contiguous_format)


def _flat(each: Tensor) -> Tensor:
    """(T, D, B, N) -> (D, T*B, N)"""
    return each.transpose(0, 1).flatten(1, 2)
