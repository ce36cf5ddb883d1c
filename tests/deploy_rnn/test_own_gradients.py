"""Gradients are added to those that are there, each to its own."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from deploy_rnn.own_gradients import separate_gradients

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    # torch compiles through its own deprecated modules
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """Two parameters, and what is computed with them."""

    def __init__(self, compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(3, 4))
        self.second = nn.Parameter(torch.full((3, 4), 2.0))
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.first, self.second)


def backend(copies: list[int], *, separate: bool = True) -> Any:
    """Runs graphs as they are, and counts the copies in each of a backward pass."""

    def compile_forward(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Any:
        before = str(graph.graph)
        separate_gradients(graph.graph)
        assert str(graph.graph) == before
        return make_boxed_func(graph.forward)

    def compile_backward(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Any:
        if separate:
            separate_gradients(graph.graph)
            graph.recompile()
        clone = torch.ops.aten.clone.default
        copies.append(len(graph.graph.find_nodes(op="call_function", target=clone)))

        def run(*inputs: Any) -> list[Any]:
            # As inductor does: each is a tensor by itself, and some are of the same memory.
            return [None if result is None else result.detach() for result in graph(*inputs)]

        return make_boxed_func(run)

    return aot_autograd(fw_compiler=compile_forward, bw_compiler=compile_backward)


def accumulated(module: nn.Module, call: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    """The gradients of two calls together."""
    module.zero_grad()
    for factor in (1.0, 3.0):
        (factor * call(X)).sum().backward()
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize(
    ("compute", "copies"),
    [
        pytest.param(lambda x, first, second: (x * (first + second)).sin(), 1, id="equal"),
        pytest.param(lambda x, first, second: x * (first + second.t().t()), 1, id="views"),
        pytest.param(lambda x, first, second: x + first + second, 2, id="what the graph gets"),
        pytest.param(lambda x, first, second: x * first + second.exp(), 0, id="unlike"),
        pytest.param(
            lambda x, first, second: (torch.cat([first, second]) * torch.cat([x, x])).sin(),
            0,
            id="parts of one tensor",
        ),
    ],
)
def test_each_gradient_is_added_to_its_own(
    compute: Callable[[Tensor, Tensor, Tensor], Tensor], copies: int
) -> None:
    module = Pair(compute)
    counted: list[int] = []
    compiled = torch.compile(module, backend=backend(counted), dynamic=False)
    torch.testing.assert_close(accumulated(module, compiled), accumulated(module, module))
    assert counted == [copies]


def test_torch_still_needs_this() -> None:
    """Once this fails, `separate_gradients` has nothing to do any more."""
    module = Pair(lambda x, first, second: (x * (first + second)).sin())
    compiled = torch.compile(module, backend=backend([], separate=False), dynamic=False)
    gradients = accumulated(module, compiled)
    assert not torch.equal(gradients[0], accumulated(module, module)[0])  # type: ignore[arg-type]
