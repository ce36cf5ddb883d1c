"""What `deploy_rnn.compile` returns, as a module: copies and files of it, hooks, transforms of torch.func."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deploy_rnn
import deploy_rnn.compilation
from deploy_rnn.compiled_function import CompiledFunction
from deploy_rnn.errors import CompilationError, ConversionError
from deploy_rnn.nn.recurrence import Recurrence, RecurrenceWrapper

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch compiles through its own deprecated modules

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_compilation(fresh_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled runs as it is."""
    monkeypatch.setattr(deploy_rnn.compilation, "compile_graph", run_as_it_is)


def run_as_it_is(graph: torch.fx.GraphModule, _: Any) -> Any:
    return graph.forward


class Scaled(nn.Module):
    """An LSTM, which has a kernel, and code that may ask for its class."""

    def __init__(self, *, asks: bool = False) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4)
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        if self.asks and "torch.nn" in type(self.rnn).__module__:
            output = output * 2
        return output


def pickled(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def double_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def triple_input(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (3 * args[0],)


COPIES = pytest.mark.parametrize("make_copy", [copy.deepcopy, pickled])


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make_copy", "is_called_before"), [(copy.deepcopy, True), (pickled, False)]
)
@torch.no_grad()
def test_a_copy_has_weights_and_hooks_of_its_own(
    make_copy: Callable[[nn.Module], Any], is_called_before: bool
) -> None:
    model = Scaled()
    compiled: Any = deploy_rnn.compile(model)
    compiled.register_forward_hook(double_output)
    if is_called_before:
        compiled(X)
    copied = make_copy(compiled)
    assert_equal(copied(X), 2 * model(X))
    changed = copy.deepcopy(model)
    for of_copy, of_model in zip(copied.parameters(), changed.parameters(), strict=True):
        for weight in (of_copy, of_model):
            weight.mul_(-1.5)
    assert_equal(copied(X), 2 * changed(X))
    assert_equal(compiled(X), 2 * model(X))


@COPIES
def test_a_copy_is_compared_as_what_it_is_of(make_copy: Callable[[nn.Module], Any]) -> None:
    copied = make_copy(deploy_rnn.compile(Scaled(asks=True)))
    with pytest.raises(ConversionError, match="the converted model is not the model"):
        copied(X)


@COPIES
@pytest.mark.parametrize("recurrence", ["scan", "library"])
@torch.no_grad()
def test_a_copy_is_compiled_with_the_same_arguments(
    make_copy: Callable[[nn.Module], Any], recurrence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: Any = deploy_rnn.compile(nn.LSTM(3, 4), check=False, recurrence=recurrence)
    calls = []

    class Noted(CompiledFunction):
        def __init__(self, *args: Any) -> None:
            calls.append(args)
            super().__init__(*args)

    monkeypatch.setattr(deploy_rnn.compilation, "CompiledFunction", Noted)
    copied = make_copy(compiled)
    ((_, _, checked_by),) = calls
    assert checked_by is None
    assert wrappers(copied.recurrence) == wrappers(compiled.recurrence)


def wrappers(recurrence: Recurrence) -> list[type]:
    """The classes of a recurrence, and of all that are within it."""
    within = wrappers(recurrence.other) if isinstance(recurrence, RecurrenceWrapper) else []
    return [type(recurrence), *within]


@torch.no_grad()
def test_a_shallow_copy_shares_the_weights_of_a_kernel() -> None:
    """It keeps them in another order, which is made again whichever of the two is called after a change."""
    model = nn.LSTM(3, 4)
    compiled: Any = deploy_rnn.compile(model, recurrence="library")
    compiled(X)
    shallow = copy.copy(compiled)
    for first, second in ((shallow, compiled), (compiled, shallow)):
        for module in (model, shallow):
            for weight in module.parameters():
                weight.mul_(-1.5)
        assert_equal(first(X)[0], model(X)[0])
        assert_equal(second(X)[0], model(X)[0])


@torch.no_grad()
def test_hooks_that_come_and_go_after_a_call() -> None:
    model = Scaled()
    compiled: Any = deploy_rnn.compile(model)
    assert_equal(compiled(X), model(X))
    for path in ("rnn", ""):
        parts = [root.get_submodule(path) for root in (model, compiled._orig_mod)]
        handles = [part.register_forward_pre_hook(triple_input) for part in parts]
        assert_equal(compiled(X), model(X))
        for handle in handles:
            handle.remove()
        assert_equal(compiled(X), model(X))


@pytest.mark.parametrize(
    "transform",
    [
        lambda module: torch.func.vmap(module)(X.unsqueeze(0)),
        lambda module: torch.func.vjp(module, X)[0],
        lambda module: torch.func.jacrev(module)(X[:2, :1]),
    ],
)
def test_transforms_of_torch_func_are_refused(transform: Callable[[Any], Any]) -> None:
    """The message names what takes them."""
    model = deploy_rnn.convert(Scaled())
    with pytest.raises(
        CompilationError, match=r"^a transform of torch.func, .* give it deploy_rnn"
    ):
        transform(deploy_rnn.compile(model))
    assert transform(model).isfinite().all()


@pytest.mark.parametrize("check", [True, False])
def test_what_is_computed_again_on_the_way_back(check: bool) -> None:
    """A checkpoint counts what is saved, and the comparison of a first call would be counted, too."""
    model = nn.GRU(3, 4)
    compiled = deploy_rnn.compile(model, check=check)
    with pytest.raises(CompilationError, match=r"^the first call .*; call the model once outside"):
        checkpoint(compiled, X, use_reentrant=False)
    compiled(X)
    for module in (model, compiled):
        checkpoint(module, X, use_reentrant=False)[0].square().sum().backward()
    for actual, expected in zip(compiled.parameters(), model.parameters(), strict=True):
        assert actual.grad is not None
        assert expected.grad is not None
        assert_equal(actual.grad, expected.grad)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_it_is_not_scripted() -> None:
    with pytest.raises(CompilationError, match=r"^torch.jit.script takes no compiled model; "):
        torch.jit.script(deploy_rnn.compile(Scaled()))


class Counting(nn.Module):
    """A step that changes what is outside of its loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)
        self.seen: list[Tensor] = []

    def step(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(state)
        state = self.cell(x, state)
        return state, state

    def forward(self, x: Tensor) -> Any:
        return deploy_rnn.scan(self.step, x.new_zeros(x.size(1), 4), x)


@torch.no_grad()
def test_what_is_said_of_the_step_of_a_loop() -> None:
    with pytest.raises(CompilationError) as raised:
        deploy_rnn.compile(Counting())(X)
    line, _, reason = str(raised.value).partition("`: ")
    assert line.endswith("`self.seen.append(state)")
    assert "Got graph break" not in reason
    assert "side effect: Mutating a variable from outside the scope" in reason
    assert reason.endswith("not supported. Write it in another way, or use the model uncompiled.")


def other_weights() -> Scaled:
    torch.manual_seed(3)
    return Scaled().eval()


def test_weights_go_to_the_model_and_back() -> None:
    """It has weights of its own: a model that was trained compiled is saved as any other."""
    model = Scaled().eval()
    compiled = deploy_rnn.compile(model)
    assert list(compiled.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        for weight in compiled.parameters():
            weight.add_(0.1)
    model.load_state_dict(compiled.state_dict())
    torch.testing.assert_close(compiled(X), model(X))
    compiled.load_state_dict(other_weights().state_dict())
    torch.testing.assert_close(compiled(X), other_weights()(X))


def test_the_names_of_torch_compile_are_taken_too() -> None:
    compiled = deploy_rnn.compile(Scaled().eval())
    wrapped = torch.compile(other_weights())
    compiled.load_state_dict(wrapped.state_dict())
    torch.testing.assert_close(compiled(X), other_weights()(X))


def test_weights_that_are_lacking_are_named() -> None:
    compiled = deploy_rnn.compile(Scaled().eval())
    state = other_weights().state_dict()
    state["rnn.other"] = state.pop("rnn.bias_hh_l0")
    with pytest.raises(RuntimeError) as raised:
        compiled.load_state_dict(state)
    assert "rnn.bias_hh_l0" in str(raised.value)
    assert "rnn.other" in str(raised.value)


def test_weights_within_a_larger_model() -> None:
    larger = nn.ModuleDict({"first": deploy_rnn.compile(Scaled().eval()), "second": Scaled()})
    plain = nn.ModuleDict({"first": other_weights(), "second": Scaled()})
    assert list(larger.state_dict()) == list(plain.state_dict())
    larger.load_state_dict(plain.state_dict())
    torch.testing.assert_close(larger["first"](X), plain["first"](X))


@pytest.mark.parametrize("packed", [False, True])
def test_a_default_device_changes_nothing(packed: bool) -> None:
    """While one is set, torch.compile does not take every method of a tensor."""
    layer = nn.GRU(3, 4, num_layers=2, bidirectional=True)
    compiled = deploy_rnn.compile(layer)
    rows: Any = nn.utils.rnn.pack_padded_sequence(X, torch.tensor([5, 3])) if packed else X
    with torch.device("cpu"):
        output = compiled(rows)[0]
        expected = layer(rows)[0]
        if packed:
            output, expected = output.data, expected.data
        output.sum().backward()
    torch.testing.assert_close(output, expected)
