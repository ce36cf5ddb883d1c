"""`write_loops_in_blocks`: a loop over time takes several steps a turn in the code that inductor writes.

A turn of a compiled loop costs a few microseconds besides its steps: it hands every tensor on, counts, and asks whether
to go on. With few units that is more than the step itself.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

STEPS_A_TURN = 4
"""With eight, a loop was at most a tenth faster, and a GRU took half as long again to compile."""

aten = torch.ops.aten


def write_loops_in_blocks(graph: torch.fx.Graph) -> None:
    """Rewrite each `scan` on the CPU into two loops, in place.

    The first takes `STEPS_A_TURN` steps a turn, as long as there are so many; the second takes those that are left, one
    by one. So one graph still serves every T. Inductor itself would write one loop of single steps.

    Args:
        graph: as `post_grad_custom_post_pass` of inductor gets it.
    """
    # The import takes a second.
    from torch._inductor.pattern_matcher import (
        CallFunctionVarArgs,
        Match,
        PatternMatcherPass,
        register_graph_pattern,
    )

    rewriting: Any = PatternMatcherPass()
    pattern = CallFunctionVarArgs(torch.ops.higher_order.scan)

    @register_graph_pattern(pattern, extra_check=_is_on_cpu, pass_dict=rewriting)
    def rewrite(match: Match, body: torch.fx.Node, *loop: Any) -> None:
        module = getattr(graph.owning_module, str(body.target))
        _write_out_small_products(module)
        tensors, spec = pytree.tree_flatten(loop)
        loops = _Loops(module, match.nodes[0].meta["val"], spec)
        match.replace_by_example(loops, tensors, run_functional_passes=False)

    rewriting.apply(graph)


def _is_on_cpu(match: Any) -> bool:
    _, states, _, _ = match.args
    return all(state.meta["val"].device.type == "cpu" for state in states)


class _Loops:
    """The two loops in place of a `scan`, as a function of its tensors and sizes.

    body: takes the states, the slices of one step, and what else is used -> new states, outputs.
    results: examples of what `scan` returns: the last states, and the outputs of all steps.
    spec: of (states, sequences, other inputs of the body).
    """

    def __init__(self, body: torch.fx.GraphModule, results: Sequence[Any], spec: Any) -> None:
        self._body = body
        self._results = results
        self._spec = spec

    def __call__(self, *tensors: Any) -> tuple[list[Any]]:
        states, sequences, others = pytree.tree_unflatten(list(tensors), self._spec)
        steps = sequences[0].size(0)
        # Memory of their own, which every turn overwrites. Were states handed on from loop to loop, those of a loop
        # without a turn would be those of the loop before, and inductor would give their memory away twice.
        states = [state.clone() for state in states]
        outputs = self._empty_outputs(len(states), [*tensors, steps])
        numbers = torch.arange(STEPS_A_TURN, device="cpu")
        for steps_a_turn in _turns(steps):
            numbers, outputs, states = self._loop(
                numbers[:steps_a_turn], steps, outputs, states, sequences, others
            )
        # One result, the list: were it the only state, a bare one would be taken for what it is taken out of.
        return ([*states, *outputs],)

    def _empty_outputs(self, number_of_states: int, known: Sequence[Any]) -> list[torch.Tensor]:
        """Memory for the outputs of all steps; their sizes are formulas of the sizes in `known`."""
        from torch._inductor.fx_passes.post_grad import resolve_shape_to_proxy

        symbols = {size.node.expr: size for size in known if isinstance(size, torch.SymInt)}
        return [
            torch.empty_strided(
                resolve_shape_to_proxy(output.size(), symbols),
                resolve_shape_to_proxy(output.stride(), symbols),
                dtype=output.dtype,
                device=output.device,
            )
            for output in self._results[number_of_states:]
        ]

    def _loop(
        self,
        numbers: torch.Tensor,
        steps: Any,
        outputs: list[torch.Tensor],
        states: list[torch.Tensor],
        sequences: list[torch.Tensor],
        others: list[Any],
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Take the steps of `numbers` in one turn, and so on while there are so many: -> where the next loop begins."""
        steps_a_turn = numbers.size(0)
        end_of_outputs = 1 + len(outputs)
        end_of_states = end_of_outputs + len(states)
        end_of_sequences = end_of_states + len(sequences)

        def goes_on(*inputs: Any) -> Any:
            return inputs[0][-1] < steps

        def turn(*inputs: Any) -> tuple[torch.Tensor, ...]:
            outputs = inputs[1:end_of_outputs]
            carried = inputs[end_of_outputs:end_of_states]
            states = list(carried)
            sequences = inputs[end_of_states:end_of_sequences]
            others = inputs[end_of_sequences:]
            # A number of its own for each step, and not the first and what is added to it: from that, PyTorch would
            # conclude that every T is larger than what is added.
            turn_steps: list[Any] = [number.item() for number in inputs[0].unbind(0)]
            for step in turn_steps:
                aten._assert_scalar.default(step >= 0, "")
                aten._assert_scalar.default(step < steps, "")
            for step in turn_steps:
                slices = [aten.select.int(sequence, 0, step) for sequence in sequences]
                results = self._body(*states, *slices, *others)
                states = list(results[: len(states)])
                for output, result in zip(outputs, results[len(states) :], strict=True):
                    aten.select.int(output, 0, step).copy_(result)
            for memory, state in zip(carried, states, strict=True):
                memory.copy_(state)
            return (inputs[0] + steps_a_turn, *outputs, *carried)

        results = torch.ops.higher_order.while_loop(
            goes_on, turn, (numbers, *outputs, *states), (*sequences, *others)
        )
        return (
            results[0],
            list(results[1:end_of_outputs]),
            list(results[end_of_outputs:]),
        )


def _turns(steps: Any) -> list[int]:
    """Steps a turn of each loop; where T is a known number, without the loop that would have no turn."""
    if not isinstance(steps, int):
        return [STEPS_A_TURN, 1]
    turns = [STEPS_A_TURN] if steps >= STEPS_A_TURN else []
    return turns if turns and steps % STEPS_A_TURN == 0 else [*turns, 1]


def _write_out_small_products(body: torch.fx.GraphModule) -> None:
    """Write the products of one row out as multiplications and sums, for which inductor writes a loop of its own.

    With B = 1, calling a library for a product takes as long as the product. Without such a call, all steps of a turn
    become one function in C++.
    """
    for node in list(body.graph.nodes):
        if node.op == "call_function" and node.target in _PRODUCTS and _is_small(node):
            with body.graph.inserting_before(node):
                node.replace_all_uses_with(_sum_of_products(body.graph, node))
            body.graph.erase_node(node)
    body.recompile()


_PRODUCTS = (aten.baddbmm.default, aten.bmm.default)


def _is_small(node: torch.fx.Node) -> bool:
    """Whether a product is one row times a matrix whose columns lie in memory one after the other."""
    row, matrix = (factor.meta["val"] for factor in _factors(node))
    return (
        not node.kwargs
        and row.dtype in (torch.float32, torch.float64)
        and row.shape[1] == 1
        and matrix.stride(1) == 1
    )


def _factors(node: torch.fx.Node) -> tuple[Any, Any]:
    return node.args[-2], node.args[-1]


def _sum_of_products(graph: torch.fx.Graph, node: torch.fx.Node) -> torch.fx.Node:
    """row (D, 1, K) @ matrix (D, K, N), and what is added to it -> (D, 1, N)"""
    row, matrix = _factors(node)
    columns = graph.call_function(aten.permute.default, (matrix, [0, 2, 1]))  # (D, N, K)
    products = graph.call_function(aten.mul.Tensor, (row, columns))
    sums = graph.call_function(aten.sum.dim_IntList, (products, [2]))
    result = graph.call_function(aten.unsqueeze.default, (sums, 1))
    if len(node.args) == 3:
        result = graph.call_function(aten.add.Tensor, (node.args[0], result))
    return result
