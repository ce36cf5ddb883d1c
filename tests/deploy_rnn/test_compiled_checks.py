"""The first call of each graph of `deploy_rnn.compile` is compared with the model: planted faults are found.

PyTorch runs each graph as it is, or with the fault.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils import _pytree as pytree

import deploy_rnn
import deploy_rnn.compilation
from deploy_rnn.call_results import Result, copy_values, difference
from deploy_rnn.errors import CompilationError

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning"
    ),  # torch compiles through its own deprecated modules
]

Run = Callable[..., Any]
Fault = Callable[[Run], Run]
"""Makes a wrong graph out of a right one."""


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Fault]], list[Any]]:
    """Plant faults: number of a graph, in the order of compilation -> its fault; -> the graphs."""

    def plant(faults: dict[int, Fault]) -> list[Any]:
        graphs: list[Any] = []

        def backend(graph: torch.fx.GraphModule, _: Sequence[Any]) -> Run:
            fault = faults.get(len(graphs), lambda run: run)
            graphs.append(graph)
            return fault(graph.forward)

        monkeypatch.setattr(deploy_rnn.compilation, "compile_graph", backend)
        return graphs

    return plant


def wrong_output(run: Run) -> Run:
    """As a graph in which two tensors had one memory was."""

    def wrong(*inputs: Any) -> Any:
        first, *rest = run(*inputs)
        return (first + 0.5, *rest)

    return wrong


def wrong_gradient(run: Run) -> Run:
    """The outputs are right."""

    def wrong(*inputs: Any) -> Any:
        first, *rest = run(*inputs)
        return (first + 0.5 * (first - first.detach()), *rest)

    return wrong


def overwriting(shape: tuple[int, ...]) -> Fault:
    """Also writes into the first input of that shape, but not into a parameter."""

    def fault(run: Run) -> Run:
        def wrong(*inputs: Any) -> Any:
            results = run(*inputs)
            tensors = [value for value in inputs if type(value) is Tensor and value.shape == shape]
            with torch.no_grad():
                tensors[0] += 0.5
            return results

        return wrong

    return fault


class Scored(nn.Module):
    """x (T, B, 3) -> scores (T, B, 2), the last state"""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)
        self.score = nn.Linear(4, 2)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Any:
        output, last = self.rnn(x, h)
        return self.score(output), last


def no_grad_call(model: nn.Module, *args: Any) -> Any:
    with torch.no_grad():
        return model(*args)


def with_gradients(model: nn.Module, *args: Any) -> Any:
    return model(*args)


def in_double(model: nn.Module, *args: Any) -> Any:
    with torch.no_grad():
        return model.double()(*(arg.double() for arg in args))


X = torch.linspace(-1, 1, 30).view(5, 2, 3)
KINDS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "one row": (no_grad_call, (X[:, :1],)),
    "one step": (no_grad_call, (X[:1],)),
    "states": (no_grad_call, (X, torch.ones(1, 2, 4))),
    "gradients": (with_gradients, (X,)),
    "float64": (in_double, (X,)),
}


def test_a_wrong_graph_of_any_kind_of_call_is_found(plant: Any) -> None:
    """That kind is refused from then on, and the others go on."""
    graphs = plant(dict.fromkeys(range(1, 6), wrong_output))
    model = Scored().eval()
    compiled = deploy_rnn.compile(model)
    for kind, (call, args) in KINDS.items():
        torch.testing.assert_close(no_grad_call(compiled, X), no_grad_call(model, X))
        for _ in range(2):
            with pytest.raises(CompilationError) as raised:
                call(compiled, *args)
        message = str(raised.value)
        assert message.startswith(
            "the compiled model is not the model: output 0 differs by 5.0e-01"
        )
        dtype = "float64" if kind == "float64" else "float32"
        gradients = "with gradients" if kind == "gradients" else "without gradients"
        assert f"in a call {gradients} of {dtype} {list(args[0].shape)}" in message
        assert "check=False" in message
    assert len(graphs) == 6


def test_without_the_comparison_the_number_is_wrong(plant: Any) -> None:
    plant({0: wrong_output})
    model = nn.GRU(3, 4).eval()
    with pytest.raises(CompilationError, match="output 0 differs"):
        no_grad_call(deploy_rnn.compile(model), X)
    plant({0: wrong_output})
    wrong = no_grad_call(deploy_rnn.compile(model, check=False), X)[0]
    torch.testing.assert_close(wrong, no_grad_call(model, X)[0] + 0.5)


def test_a_wrong_gradient_is_found(plant: Any) -> None:
    """Without touching the gradients that there are, or calling a hook."""
    plant({0: wrong_gradient})
    compiled = deploy_rnn.compile(Scored())
    calls: list[Any] = []
    for weight in compiled.parameters():
        weight.register_hook(calls.append)
    for _ in range(2):
        with pytest.raises(
            CompilationError, match=r"the gradient of input .* of the graph differs"
        ):
            compiled(X)
    assert calls == []
    assert all(weight.grad is None for weight in compiled.parameters())
    plant({})
    compiled = deploy_rnn.compile(model := Scored())
    for network in (compiled, model):
        network(X)[0].sin().sum().backward()
    for actual, expected in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


class Remembering(nn.Module):
    """Goes on where its last call has ended, counts its calls, normalises, and overwrites what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.h = torch.zeros(1, 2, 4)

    def forward(self, x: Tensor, log: Tensor) -> Tensor:
        self.calls.add_(1)
        self.frozen.add_(self.calls)
        x = self.norm(x.flatten(0, 1)).view_as(x)
        output, h = self.rnn(x, self.h)
        self.h = h.detach()
        log += output.detach().sum()
        result: Tensor = output * self.calls
        return result


def state_of(model: Remembering) -> Any:
    values = [*model.state_dict().values(), model.h]
    return [value.detach().clone() for value in values]


@pytest.mark.parametrize("grad", [False, True])
def test_a_call_changes_a_model_once(plant: Any, grad: bool) -> None:
    """In training mode, with all that it remembers; the random numbers go on, too."""
    plant({})
    model = Remembering()
    compiled = deploy_rnn.compile(model)
    logs = [torch.zeros(()), torch.zeros(())]
    random = torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        for x in (X, 2 * X, X[:1], X):
            outputs = [
                network(x, log) for network, log in zip((compiled, model), logs, strict=True)
            ]
            torch.testing.assert_close(*outputs)
            torch.testing.assert_close(*logs)
            torch.testing.assert_close(state_of(compiled), state_of(model))
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    ("shape", "name"), [((), "(`calls`|tensor 1 of the arguments)"), ((3,), "`norm.running_mean`")]
)
def test_a_wrong_write_is_found(plant: Any, shape: tuple[int, ...], name: str) -> None:
    """Into the argument that the model overwrites, or into a buffer."""
    plant({0: overwriting(shape)})
    compiled = deploy_rnn.compile(Remembering())
    with pytest.raises(CompilationError, match=f"{name}, after the call, differs by"):
        no_grad_call(compiled, X.clone(), torch.zeros(()))


class Dropping(Scored):
    def forward(self, x: Tensor, h: Tensor | None = None) -> Any:
        output, last = super().forward(x, h)
        return nn.functional.dropout(output, 0.5, self.training), last


def other_shape(run: Run) -> Run:
    return lambda *inputs: tuple(result[:1] for result in run(*inputs))


def test_a_model_that_draws_random_numbers(plant: Any) -> None:
    """Compiled code draws others: shapes are compared in training mode, and numbers in evaluation mode."""
    plant({0: wrong_output, 1: wrong_output})
    compiled = deploy_rnn.compile(Dropping())
    compiled(X)
    with pytest.raises(CompilationError, match="output 0 differs by"):
        compiled.eval()(X)
    plant({0: other_shape})
    message = r"output 0 is torch.float32\[1, 2, 2\], the model's is torch.float32\[5, 2, 2\]"
    with pytest.raises(CompilationError, match=message):
        deploy_rnn.compile(Dropping())(X)


@pytest.mark.parametrize("wrong", [False, True])
def test_threads_wait_for_the_comparison(plant: Any, wrong: bool) -> None:
    """A call that begins while the graph runs for the first time: of a wrong graph, it gets no number either."""
    calls: list[Future[Any]] = []
    model = Scored().eval()

    def with_another_call(run: Run) -> Run:
        def first_run(*inputs: Any) -> Any:
            if not calls:
                calls.append(pool.submit(no_grad_call, compiled, X))
                assert not wait(calls, timeout=0.5).done
            return run(*inputs)

        return wrong_output(first_run) if wrong else first_run

    graphs = plant({0: with_another_call})
    compiled = deploy_rnn.compile(model)
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(no_grad_call, compiled, X)]
        wait(results)
        results += calls
        for result in results:
            if wrong:
                with pytest.raises(CompilationError, match="output 0 differs by"):
                    result.result()
            else:
                torch.testing.assert_close(result.result(), no_grad_call(model, X))
    assert len(results) == 2
    assert len(graphs) == 1


def test_arguments_that_the_model_refuses_in_a_later_kind_of_call(plant: Any) -> None:
    plant({})
    compiled = deploy_rnn.compile(Scored())
    no_grad_call(compiled, X)
    with pytest.raises(CompilationError, match="the model itself fails on its arguments"):
        no_grad_call(compiled, X, torch.ones(1, 7, 4))


class Amplifying(nn.Module):
    """After so many steps, a rounding has become as large as the numbers; x (T, B, 3) -> (B, 3), and the largest"""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.sigmoid(self.rnn(x)[1][0])
        for _ in range(25):
            y = 3.99 * y * (1 - y)
        return y, y.argmax(-1)


def rounding(run: Run) -> Run:
    """Its weights are rounded otherwise."""

    def rounded(*inputs: Any) -> Any:
        return run(*(x * (1 + 1e-7) if type(x) is nn.Parameter else x for x in inputs))

    return rounded


def test_what_rounding_can_do_is_not_a_fault(plant: Any) -> None:
    x = torch.randn(5, 64, 3)
    plant({0: rounding})
    model = Amplifying().eval()
    rounded = no_grad_call(deploy_rnn.compile(model), x)[0]
    assert (rounded - no_grad_call(model, x)[0]).abs().max() > 0.1
    plant({0: wrong_output})
    model = Scored().eval()
    with pytest.raises(CompilationError, match=r"output 0 differs by 5\.0e-01, allowed is"):
        no_grad_call(deploy_rnn.compile(model), x)


def test_whole_numbers_may_differ_in_few_places() -> None:
    expected = [Result("output 0", torch.arange(20_000))]
    actual = [Result("output 0", torch.arange(20_000))]
    actual[0].value[:2] += 1
    assert difference(expected, actual) == "output 0 differs in 2 of 20000 elements"
    assert difference(expected, actual, whole_numbers=1e-4) == ""
    actual[0].value[:3] = 7
    assert (
        difference(expected, actual, whole_numbers=1e-4)
        == "output 0 differs in 3 of 20000 elements"
    )


def test_a_copy_of_arguments_has_a_memory_of_its_own() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    once = torch.ones(2)
    given = ([once, once], {"packed": packed, "number": 3})
    copied = copy_values(given)
    assert copied[0][0] is copied[0][1]
    assert isinstance(copied[1]["packed"], PackedSequence)
    for tensor in (copied[0][0], copied[1]["packed"].data):
        tensor.zero_()
    assert bool(given[0][0].all())
    assert bool(packed.data.all())
    assert pytree.tree_leaves(copied)[-1] == 3
