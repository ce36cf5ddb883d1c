"""Checks of compiled code at its first call: `ExpectedCall` of a model, and the gradients of a graph.

The converted model, uncompiled, is what the compiled one must equal. It is there anyway, with the weights, states and
modes of the call; the original would have to be kept for calls of other kinds, which may never come. `FirstCall`
compares those two.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.call_results import (
    Change,
    Result,
    copy_values,
    copy_with_weights,
    difference_beyond_rounding,
    difference_in_kind,
    outputs,
    run_quietly,
    state_after,
    values_after,
)
from deploy_rnn.errors import CompilationError
from deploy_rnn.model_errors import own_failure
from deploy_rnn.random_state import changed_generators, generator_states, random_state_kept


class ExpectedCall:
    """A call of a model that is yet to run compiled, and what it comes to uncompiled.

    It runs on a copy, with a state and arguments of its own: the call changes the model once, as if nothing had been
    checked. Gradients, autocast and the mode of each part are as for the call.

    Args:
        model: what is compiled.
        args: of the call.
        kwargs: of the call.

    Raises:
        CompilationError: the model itself fails.
    """

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._before = copy_with_weights(model, model)
        self._call = copy_values((args, kwargs))
        with random_state_kept():
            generators = generator_states()
            try:
                self._expected = self._run(None)
            except Exception as error:  # the model's own code can raise anything
                raise CompilationError(own_failure(error)) from error
            self._is_random = bool(changed_generators(generators))

    def compare(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Compare with the same call after it has run compiled: its result, overwritten arguments, the model's state.

        Of a model that draws random numbers, only shapes and dtypes are compared: compiled code draws others.

        Raises:
            CompilationError: something differs.
        """
        actual = [*outputs(result), *values_after(args, kwargs), *state_after(model)]
        if self._is_random:
            text = difference_in_kind(self._expected, actual)
        else:
            text = difference_beyond_rounding(self._expected, actual, self._before, self._run_again)
        if text:
            raise miscompiled(text, (args, kwargs))

    def _run_again(self, change: Change | None) -> list[Result]:
        with random_state_kept():
            return self._run(change)

    def _run(self, change: Change | None) -> list[Result]:
        """Run the call; `change`: what is made of each weight and each tensor of the call."""
        model = copy_with_weights(self._before, self._before, change)
        args, kwargs = copy_values(self._call)
        if change is not None:
            args, kwargs = pytree.tree_map_only(Tensor, change, (args, kwargs))
        result = run_quietly(model, args, kwargs)
        return [*outputs(result), *values_after(args, kwargs), *state_after(model)]


def check_gradients(graph: torch.fx.GraphModule, compiled: Any, inputs: Sequence[Any]) -> None:
    """Compare the gradients of a compiled graph with those of the graph itself, which PyTorch runs node by node.

    A graph is a function of its inputs, and the weights and buffers are among them: no other gradient is touched, and
    no hook is called. A graph that draws random numbers is not compared.

    Raises:
        CompilationError: a gradient differs.
    """

    def run(change: Change | None) -> list[Result]:
        return _gradients(graph.forward, inputs, change)

    with random_state_kept():
        generators = generator_states()
        expected = run(None)
        if not expected or changed_generators(generators):
            return
        actual = _gradients(compiled, inputs)
    text = difference_beyond_rounding(expected, actual, graph, run)
    if text:
        raise miscompiled(text, inputs)


def _gradients(function: Any, inputs: Sequence[Any], change: Change | None = None) -> list[Result]:
    """The gradients of the inputs of a graph, from random gradients of its outputs."""
    leaves = [_leaf(value, change) for value in inputs]
    ends = [result for result in pytree.tree_leaves(function(*leaves)) if _has_gradient(result)]
    starts = {number: leaf for number, leaf in enumerate(leaves) if _has_gradient(leaf)}
    if not ends or not starts:
        return []
    random = torch.Generator().manual_seed(0)
    grads = [torch.randn(end.shape, generator=random).to(end) for end in ends]
    gradients = torch.autograd.grad(
        ends, list(starts.values()), grads, allow_unused=True, materialize_grads=True
    )
    return [
        Result(f"the gradient of input {number} of the graph", gradient)
        for number, gradient in zip(starts, gradients, strict=True)
    ]


def _leaf(value: Any, change: Change | None) -> Any:
    """An input of a graph apart from where it comes from; what the graph may overwrite is copied."""
    if not isinstance(value, Tensor):
        return value
    leaf = value.detach()
    if change is not None:
        leaf = change(leaf)
    elif not (isinstance(value, nn.Parameter) and value.requires_grad):
        leaf = leaf.clone()
    return leaf.requires_grad_(value.requires_grad)


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def miscompiled(text: str, call: Any) -> CompilationError:
    """The error of compiled code that is not the model; `text`: what differs."""
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]
    shapes = [f"{str(one.dtype).removeprefix('torch.')} {list(one.shape)}" for one in tensors[:3]]
    if len(tensors) > 3:
        shapes.append("...")
    gradients = "with gradients" if torch.is_grad_enabled() else "without gradients"
    return CompilationError(
        f"the compiled model is not the model: {text}, in a call {gradients} of {', '.join(shapes) or 'no tensors'}. "
        "torch.compile has written wrong code for this kind of call, which is refused from now on. "
        "deploy_rnn.convert(model) runs uncompiled; deploy_rnn.compile(model, check=False) leaves out the comparison."
    )
