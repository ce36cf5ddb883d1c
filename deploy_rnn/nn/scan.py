"""The time loop under `torch.compile`, in the one place where it can be changed.

A Python loop would be unrolled into the graph: compile time grows with T, and every new T compiles again. PyTorch's
`scan` operator keeps it a loop, so that one compilation serves every length. It is a prototype, hence private.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext
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
        first_mask = None if mask is None else mask[0]
        states = _advance(step, projected[0], first_mask, states, weights)
        return states[0].unsqueeze(0), states
    if torch.is_grad_enabled():
        sequences = _Differentiable.apply(step, len(states), projected, mask, *states, *weights)  # type: ignore[no-untyped-call]
        return sequences[0], [sequence[-1] for sequence in sequences]
    last_states, sequences = _scan(step, projected, mask, states, weights, kept=1)
    return sequences[0], last_states


def _scan(
    step: Step,
    projected: Tensor,
    mask: Tensor | None,
    states: list[Tensor],
    weights: list[Tensor],
    *,
    kept: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the loop: -> the last states, and the first `kept` states of every step."""
    sequences = [projected] if mask is None else [projected, mask]

    def advance(
        old_states: list[Tensor], slices: Sequence[Tensor], weights: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Take one step. The states to keep are copied: scan refuses a carry that is also an output."""
        step_mask = None if mask is None else slices[1]
        new_states = _advance(step, slices[0], step_mask, old_states, weights)
        return new_states, [state.clone() for state in new_states[:kept]]

    def body(
        old_states: list[Tensor], slices: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return advance(old_states, slices, weights)

    if not torch.compiler.is_exporting() or torch.compiler.is_dynamo_compiling():
        return traced_scan(body, states, sequences)

    # torch.export: the operator itself, which is given everything that its body uses.
    # 1. `scan` would have torch.compile trace the body. The sizes that it remembers from earlier calls then fix
    #    axes that are to be dynamic, depending on what else the process has run (torch 2.13).
    # 2. Inductor computes the shape of the outputs from those inputs that are sizes, and from nothing else.
    number_of_states = len(states)
    end_of_slices = number_of_states + len(sequences)

    def flat_body(*args: Any) -> list[Tensor]:
        old_states = list(args[:number_of_states])
        slices = args[number_of_states:end_of_slices]
        held_weights = list(args[end_of_slices:][: len(weights)])  # after them, the sizes
        new_states, copies = advance(old_states, slices, held_weights)
        return [*new_states, *copies]

    results = list(scan_op(flat_body, states, sequences, (*weights, *symbols(projected.shape))))
    return results[:number_of_states], results[number_of_states:]


def traced_scan(
    body: Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]],
    states: Sequence[Tensor],
    sequences: Sequence[Tensor],
    *,
    sized: Sequence[Tensor] = (),
    reverse: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run `scan` under torch.compile, its body given every unknown size of the sequences and of `sized`.

    Inductor computes the shape of the outputs from those inputs of the loop that are sizes (torch 2.13). Torch.compile
    hands in the unknowns in the shape of each tensor that the body uses. Of the sequences, it uses single steps: where
    a convolution leaves T-2 steps, T would be missing. `sized` are other tensors with such sizes; none of `states`,
    since the loop would be refused as aliasing its input.
    """
    whole = [*sequences, *sized]
    _let_loops_count()

    def body_with_sizes(
        old_states: list[Tensor], slices: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        for tensor in whole:
            tensor.detach()  # no code comes of it: only the inputs that it needs stay
        return body(old_states, slices)

    return scan(body_with_sizes, list(states), list(sequences), reverse=reverse)


def _let_loops_count() -> None:
    """While torch.compile traces: let inductor count the steps of a loop.

    It reads the number of the step out of a tensor, which torch.compile without `fullgraph` does not allow (torch
    2.13).
    """
    context = TracingContext.try_get()
    if context is not None and context.fake_mode is not None:
        sizes = context.fake_mode.shape_env
        if sizes is not None:
            sizes.settings = replace(sizes.settings, allow_scalar_outputs=True)


# As `torch.compiler.assume_constant_result` has it, which would import torch.compile with every layer: it is called
# while torch.compile traces, and leaves nothing in the graph.
_let_loops_count._dynamo_marked_constant = True  # type: ignore[attr-defined]


def symbols(shape: Sequence[Any]) -> list[torch.SymInt]:
    """Every unknown in `shape`, by itself: s0 and s1 for an axis of s0*s1."""
    symbols: dict[Any, torch.SymInt] = {}
    for size in shape:
        if isinstance(size, torch.SymInt):
            for symbol in size.node.expr.free_symbols:
                symbols[symbol] = size.node.shape_env.create_symintnode(symbol, hint=None)
    return list(symbols.values())


def _advance(
    step: Step, projected: Tensor, mask: Tensor | None, states: list[Tensor], weights: list[Tensor]
) -> list[Tensor]:
    """Take one step; a row that has ended keeps its states."""
    new_states = step(projected, states, weights)
    if mask is None:
        return new_states
    return [torch.where(mask, new, old) for new, old in zip(new_states, states, strict=True)]


class _Differentiable(torch.autograd.Function):
    """`_scan` with its own backward, for any cell.

    `scan` could differentiate itself, but sums the gradient of the weights into a buffer that inductor shares between
    layers of one shape, and returns wrong numbers without an error (torch 2.13, two bidirectional layers). Here:

    1. The gradients of the states are carried backwards through time, one vector-Jacobian product per step.
    2. The weights' gradients need no order: all steps at once, as a batch of T*B, outside the loop.
    """

    @staticmethod
    def forward(
        ctx: Any,
        step: Step,
        number_of_states: int,
        projected: Tensor,
        mask: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        states = list(tensors[:number_of_states])
        weights = list(tensors[number_of_states:])
        sequences = _scan(step, projected, mask, states, weights, kept=number_of_states)[1]
        ctx.step = step
        ctx.number_of_states = number_of_states
        ctx.save_for_backward(projected, mask, *tensors, *sequences)
        return tuple(sequences)

    @staticmethod
    def backward(ctx: Any, *grad_sequences: Tensor) -> tuple[Tensor | None, ...]:
        step = ctx.step
        count = ctx.number_of_states
        projected, mask, *tensors = ctx.saved_tensors
        states = tensors[:count]
        weights = tensors[count:-count]
        sequences = tensors[-count:]
        # What each step started from, (T, D, B, P) ...
        previous = [
            torch.cat([state.unsqueeze(0), sequence[:-1]])
            for state, sequence in zip(states, sequences, strict=True)
        ]

        def body(
            later_grads: list[Tensor], slices: list[Tensor]
        ) -> tuple[list[Tensor], list[Tensor]]:
            """Take one step back: -> the gradients of the states before the step, and of those after it."""
            grads = [later + own for later, own in zip(later_grads, slices[:count], strict=True)]
            old_states = slices[count : 2 * count]
            step_input = slices[2 * count]
            step_mask = None if mask is None else slices[2 * count + 1]
            pull: Any = torch.func.vjp(
                lambda states: _advance(step, step_input, step_mask, states, weights), old_states
            )[1]
            return pull(grads)[0], grads

        # Case 1.
        walked = [*grad_sequences, *previous, projected]
        if mask is not None:
            walked.append(mask)
        no_grads = [zeros(state.shape, projected) for state in states]
        grad_states, grads = traced_scan(body, no_grads, walked, reverse=True)
        # Case 2.
        if mask is not None:
            grads = [grad * mask for grad in grads]  # a row that has ended does not use the weights
        flat_previous = [_flat(state) for state in previous]
        flat_grads = [_flat(grad) for grad in grads]
        pull: Any = torch.func.vjp(
            lambda projected, weights: step(projected, flat_previous, weights),
            _flat(projected),
            weights,
        )[1]
        grad_projected, grad_weights = pull(flat_grads)
        # Not by `unflatten`, which torch.compile does not take while a default device is set.
        steps, directions, batch, features = projected.shape
        grad_projected = grad_projected.view(directions, steps, batch, features)
        grad_projected = grad_projected.transpose(0, 1)  # (T, D, B, G*H)
        return None, None, grad_projected, None, *grad_states, *grad_weights


def zeros(shape: Sequence[int], data: Tensor) -> Tensor:
    """Zeros that the compiler does not recognise as a constant.

    A loop's first carry is overwritten by the loop. Inductor keeps one buffer for equal constants, so that a constant
    carry's overwritten buffer would be read wherever else the graph has zeros of that shape (torch 2.13).
    """
    return never(data).to(data.dtype).expand(shape).clone(memory_format=torch.contiguous_format)


def never(data: Tensor) -> Tensor:
    """False, of no axes, which the compiler does not know to be a constant; any tensor will do as `data`."""
    number = data.flatten()[:1].sum()  # 0 for an empty batch
    return torch.logical_and(number != number, number == number)


def _flat(sequence: Tensor) -> Tensor:
    """(T, D, B, N) -> (D, T*B, N)"""
    return sequence.transpose(0, 1).flatten(1, 2)
