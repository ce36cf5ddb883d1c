"""`deploy_rnn.convert`: the same model with our layers in it."""

import copy
import logging
import pickle
import threading
from abc import ABC
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from deploy_rnn import GRU, LSTM, RNN, convert
from deploy_rnn.conversion import convert_for_inference
from deploy_rnn.copying import evaluation_copy
from deploy_rnn.errors import ConversionError


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.RNN(3, 4, 2, bidirectional=True, dropout=0.5)
        self.inner = nn.ModuleDict(
            {"list": nn.ModuleList([nn.RNN(8, 5, nonlinearity="relu", bias=False)])}
        )
        self.shared = self.first

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.inner["list"][0](self.first(x)[0])[0]
        return inner + self.shared(x)[0].sum()


def test_every_layer_is_replaced_and_the_numbers_stay() -> None:
    model = Encoder().eval()
    converted = convert(model)
    assert not any(isinstance(module, nn.RNN) for module in converted.modules())
    assert sum(isinstance(module, RNN) for module in converted.modules()) == 2
    x = torch.randn(7, 2, 3)
    torch.testing.assert_close(converted(x), model(x))


def test_the_original_is_untouched() -> None:
    model = Encoder()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    converted = convert(model)
    with torch.no_grad():
        for weight in converted.parameters():
            weight.zero_()
    assert type(model.first) is nn.RNN
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_a_shared_layer_stays_shared() -> None:
    converted = convert(Encoder())
    assert converted.first is converted.shared
    assert list(converted.state_dict()) == list(Encoder().state_dict())


def test_a_bare_layer_and_our_own_layers() -> None:
    layer = nn.RNN(3, 4, 2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    once = convert(layer)
    twice = convert(once)
    assert type(once) is RNN
    assert type(twice) is RNN
    torch.testing.assert_close(twice(x), layer(x))


def test_mode_hooks_and_requires_grad_are_kept() -> None:
    layer = nn.RNN(3, 4, 2, dropout=0.5)
    layer.weight_ih_l0.requires_grad_(False)
    layer.register_forward_hook(lambda module, args, output: (output[0] + 100, output[1]))
    for mode in (True, False):
        converted = convert(layer.train(mode))
        assert converted.training is mode
        assert not converted.weight_ih_l0.requires_grad
        assert converted.weight_hh_l0.requires_grad
        assert converted(torch.zeros(2, 1, 3))[0].min() > 90


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("cls", [nn.RNN, nn.GRU, nn.LSTM])
def test_every_family_and_its_options(cls: type[nn.RNNBase]) -> None:
    extra = {"proj_size": 3} if cls is nn.LSTM else {}
    layer = cls(3, 4, 2, bidirectional=True, dropout=0.5, **extra).eval()
    converted = convert(nn.ModuleDict({"a": layer}))["a"]
    assert type(converted).__module__.startswith("deploy_rnn.")
    assert repr(converted) == repr(layer)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x), layer(x))


@pytest.mark.parametrize("cls", [nn.RNN, nn.GRU, nn.LSTM])
def test_parametrisations_stay(cls: type[nn.RNNBase]) -> None:
    layer = parametrizations.weight_norm(cls(3, 4, 2), "weight_hh_l1")
    converted = convert(layer)
    assert list(converted.state_dict()) == list(layer.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x), layer(x))
    with torch.no_grad():
        converted.parametrizations.weight_hh_l1.original0.mul_(2)
    assert not torch.allclose(converted(x)[0], layer(x)[0])
    converted(x)[0].sum().backward()
    assert converted.parametrizations.weight_hh_l1.original1.grad is not None
    before = converted(x)[0]
    torch.nn.utils.parametrize.remove_parametrizations(converted, "weight_hh_l1")
    assert not isinstance(converted, nn.RNNBase)
    torch.testing.assert_close(converted(x)[0], before)


class Inherited(nn.RNN):
    """It adds nothing."""


class Helpful(nn.RNN):
    def last(self, x: Tensor) -> Tensor:
        state: Tensor = self(x)[1]
        return state


class Checked(nn.RNN):
    def check_forward_args(self, *args: Any) -> None:
        """No check at all."""


class Taken(nn.GRU):
    ordered_weights = ()


class TakenInstance(nn.GRU):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cell = None


class Abstract(ABC):  # noqa: B024
    def begin(self, batch: int) -> Tensor:
        return torch.full((1, batch, self.hidden_size), 0.5)  # type: ignore[attr-defined]


class Begun(Abstract, nn.GRU):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.factor = 2

    @property
    def doubled(self) -> int:
        return self.factor * self.hidden_size


class Derived(Begun):
    def begin(self, batch: int) -> Tensor:
        return super().begin(batch) + 1

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.bias_ih_l0.fill_(0.25)


class Ours(RNN):
    def last(self, x: Tensor) -> Tensor:
        state: Tensor = self(x)[1]
        return state


def test_a_subclass_of_our_layer_stays_what_it_is() -> None:
    layer = Ours(3, 4)
    converted = convert(nn.Sequential(layer))[0]
    assert type(converted) is Ours
    assert converted is not layer
    assert torch.equal(converted.last(torch.ones(2, 1, 3)), layer.last(torch.ones(2, 1, 3)))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(ConversionError, match="`0` is scripted, with a recurrent layer in it"):
        convert(nn.Sequential(torch.jit.script(nn.RNN(3, 4))))
    with pytest.raises(
        ConversionError, match="`model` is a TorchScript module, whose layers are compiled; give"
    ):
        convert(torch.jit.freeze(torch.jit.script(nn.Sequential(nn.LSTM(3, 4))).eval()))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_part_without_a_layer_stays() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 4)
            self.norm = torch.jit.script(nn.LayerNorm(4))

        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = self.norm(self.rnn(x)[0])
            return normed

    model = Normed()
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(convert(model)(x), model(x))


def test_a_subclass_with_nothing_of_its_own_is_converted() -> None:
    layer = Inherited(3, 4)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(convert(layer)(x), layer(x))


def test_the_helpers_of_a_subclass_still_help() -> None:
    layer = Derived(3, 4)
    converted = convert(nn.Sequential(layer))[0]
    assert isinstance(converted, GRU)
    assert type(converted).__name__ == "Derived"
    assert converted.doubled == 8
    assert torch.equal(converted.begin(2), torch.full((1, 2, 4), 1.5))
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x, converted.begin(2)), layer(x, layer.begin(2)))
    assert type(convert(Derived(3, 4))) is type(converted)
    with torch.no_grad():
        converted.bias_ih_l0.zero_()
    converted.reset_parameters()
    assert torch.equal(converted.bias_ih_l0, torch.full((12,), 0.25))


def test_a_layer_with_helpers_is_copied_and_pickled() -> None:
    converted = convert(Derived(3, 4))
    x = torch.randn(5, 2, 3)
    for again in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert type(again) is type(converted)
        torch.testing.assert_close(again(x), converted(x))


def test_a_parametrised_subclass() -> None:
    layer = parametrizations.weight_norm(Derived(3, 4), "weight_hh_l0")
    converted = convert(layer)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x, converted.begin(2)), layer(x, layer.begin(2)))


def with_weight_drop(layer: nn.LSTM) -> nn.LSTM:
    """As text libraries have it: a forward on the object computes the weight, and calls the one before."""
    raw = layer.weight_hh_l0
    del layer._parameters["weight_hh_l0"]
    layer.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.detach()))
    forward_before = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        dropped = nn.functional.dropout(layer.weight_hh_l0_raw, 0.5, layer.training)  # type: ignore[arg-type]
        layer.weight_hh_l0 = 2 * dropped  # type: ignore[assignment]
        return forward_before(*args, **kwargs)

    layer.forward = forward  # type: ignore[method-assign, assignment]
    return layer


@pytest.mark.parametrize("trained", [False, True])
def test_a_forward_that_is_set_on_the_object(trained: bool) -> None:
    model = nn.Sequential(with_weight_drop(nn.LSTM(3, 4)))
    x = torch.randn(5, 2, 3)
    if trained:
        model(x)[0].sum().backward()
    converted = convert(model).eval()
    assert type(converted[0]) is LSTM
    torch.testing.assert_close(converted(x), model.eval()(x))
    with torch.no_grad():
        for weight in converted.parameters():
            weight.zero_()
    assert not converted(x)[0].any()
    assert model(x)[0].any()


def test_a_forward_on_the_object_that_runs_the_one_of_torch() -> None:
    layer = nn.GRU(3, 4)
    layer.forward = lambda x: nn.GRU.forward(layer, 2 * x)  # type: ignore[method-assign]
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(convert(nn.Sequential(layer))(x), layer(x))


class Holder:
    def __init__(self, rnn: nn.Module) -> None:
        self.rnn = rnn


class Pair(NamedTuple):
    rnn: nn.Module
    name: str


HELD: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], Any]]] = {
    "list": (lambda rnn: [1, rnn], lambda held: held[1]),
    "dict": (lambda rnn: {"a": {"b": rnn}}, lambda held: held["a"]["b"]),
    "tuple": (lambda rnn: ("a", [rnn], rnn), lambda held: held[2]),
    "named tuple": (lambda rnn: Pair(rnn, "a"), lambda held: held.rnn),
    "list in a tuple": (lambda rnn: ("a", [rnn]), lambda held: held[1][0]),
    "set": (lambda rnn: {rnn}, lambda held: next(iter(held))),
    "object": (lambda rnn: Holder(rnn), lambda held: held.rnn),
    "partial": (lambda rnn: partial(rnn), lambda held: held.func),
    "bound method": (lambda rnn: rnn.forward, lambda held: held.__self__),
}


@pytest.mark.parametrize("name", HELD)
def test_a_layer_that_is_also_held_elsewhere(name: str) -> None:
    hold, find = HELD[name]

    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 4)
            self.held = hold(self.rnn)

    model = Holding()
    converted = convert(model)
    assert find(converted.held) is converted.rnn
    assert find(model.held) is model.rnn
    assert type(converted.rnn) is GRU


def test_a_layer_in_a_closure() -> None:
    """A function is not copied by Python: it would go on running the layer of the original."""

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = rnn = nn.GRU(3, 4)
            run = self.rnn.forward
            self.steps = [lambda x: rnn(x)[0], lambda x, layer=rnn: layer(x)[0]]
            self.last = lambda x: run(x)[0]

        def forward(self, x: Tensor) -> Tensor:
            total: Tensor = sum(step(x) for step in [*self.steps, self.last])
            return total

    model = Closed()
    x = torch.randn(5, 2, 3)
    before = model(x)
    converted = convert(model)
    torch.testing.assert_close(converted(x), before)
    with torch.no_grad():
        for weight in converted.parameters():
            weight.zero_()
    assert not converted(x).any()
    torch.testing.assert_close(model(x), before)


class Handler(logging.NullHandler):
    """A log that knows the model."""


def test_what_the_copy_shares_is_not_changed() -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    logger = logging.getLogger("a_log_of_the_model")
    handler = Handler()
    handler.model = model  # type: ignore[attr-defined]
    logger.addHandler(handler)
    model.logger = logger  # type: ignore[assignment]
    convert(model)
    assert handler.model is model  # type: ignore[attr-defined]
    logger.removeHandler(handler)


def test_hooks_with_a_layer_in_their_closure() -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    head = nn.Linear(3, 4)
    model.head = head
    model[0].register_forward_hook(lambda module, args, output: (output[0] + head(args[0]),))
    model.forward = lambda x: nn.Sequential.forward(model[:1], x)  # type: ignore[method-assign]
    converted = convert(model)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x), model(x))
    with torch.no_grad():
        for weight in converted.parameters():
            weight.zero_()
    assert not converted(x)[0].any()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize("cls", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize(
    "compute",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        partial(prune.l1_unstructured, amount=0.5),
    ],
)
def test_weights_that_hooks_compute(cls: type[nn.RNNBase], compute: Any) -> None:
    """In a layer, and next to one; the copy computes them from its own parameters."""
    model = nn.Sequential(nn.Linear(3, 3), cls(3, 4, 2)).eval()
    compute(model[0], "weight")
    compute(model[1], "weight_hh_l1")
    converted = convert(model)
    assert list(converted.state_dict()) == list(model.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x), model(x))
    with torch.no_grad():
        for weight in (*model.parameters(), *converted.parameters()):
            weight.add_(torch.linspace(0, 1, weight.numel()).view_as(weight))
    torch.testing.assert_close(converted(x), model(x))
    converted(x)[0].sum().backward()
    assert all(weight.grad is not None for weight in converted.parameters())


class Dropped(nn.Module):
    """A weight drop as of AWD-LSTM: a plain attribute of the layer that every forward computes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2)
        self.raw = nn.Parameter(self.rnn.weight_hh_l0.detach().clone())
        del self.rnn.weight_hh_l0
        self.rnn.flatten_parameters = self.widget_demagnetizer  # type: ignore[method-assign]
        self._set()

    def widget_demagnetizer(self) -> None:
        pass

    def _set(self) -> None:
        self.rnn.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5, self.training) * 1  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        self._set()
        self.last = self.rnn(x)[0]
        return self.last


@pytest.mark.parametrize("trained", [False, True])
def test_tensors_with_a_history_are_copied_without_it(trained: bool) -> None:
    """Weights that a forward sets, and what it keeps: fresh, and straight after training."""
    model = Dropped()
    x = torch.randn(5, 2, 3)
    if trained:
        model(x).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    converted = convert(model).eval()
    assert type(converted.rnn) is LSTM
    torch.testing.assert_close(converted(x), model.eval()(x))
    converted.zero_grad()
    converted(x).sum().backward()
    assert converted.raw.grad is not None


class Logged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)
        self.lock = threading.Lock()
        self.batches = (number for number in range(3))
        self.log = {"file": Path(__file__).open()}  # noqa: SIM115

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            output: Tensor = self.rnn(x)[0]
        return output


def test_what_python_cannot_copy_is_shared() -> None:
    model = nn.Sequential(Logged())
    converted = convert(model)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x), model(x))
    assert converted[0].lock is model[0].lock
    assert converted[0].log is not model[0].log
    assert converted[0].log["file"] is model[0].log["file"]
    model[0].log["file"].close()  # type: ignore[union-attr, operator]


def test_a_module_that_refuses_to_be_copied_is_named() -> None:
    class Single(nn.GRU):
        def __deepcopy__(self, memo: Any) -> Any:
            raise ValueError("there is one of me")

    with pytest.raises(ConversionError, match="cannot be copied: ValueError: there is one of me"):
        convert(nn.Sequential(Single(3, 4)))


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own
class Silent(nn.Sequential):
    """Its `train`, which `eval` calls, returns nothing."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def test_a_model_whose_train_returns_nothing() -> None:
    model = Silent(nn.GRU(3, 4))
    assert not evaluation_copy(model).training
    assert not convert_for_inference(model).training
    assert model.training


def test_the_wrapper_of_torch_compile_is_left_out() -> None:
    """It would be there with `_orig_mod.` in every name."""
    inner = nn.GRU(3, 4)
    model: Any = torch.compile(nn.Sequential(torch.compile(inner)), backend="eager")
    converted = convert(model)
    assert list(converted.state_dict()) == [f"0.{name}" for name in inner.state_dict()]
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x), inner(x))


class Hidden(nn.Module):
    def forward(self, results: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return results[0]


class LoopOfItsOwn(nn.RNNBase):
    """A layer with the weights of one of torch.nn, and a loop in Python."""

    def __init__(self) -> None:
        super().__init__("RNN_TANH", 3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        h = x.new_zeros(x.size(1), 4)
        for step in x:
            h = torch.tanh(step @ self.weight_ih_l0.T + h @ self.weight_hh_l0.T)
        return h


def test_a_layer_with_a_loop_of_its_own_stays() -> None:
    model = nn.Sequential(nn.GRU(3, 3), Hidden(), LoopOfItsOwn())
    x = torch.randn(5, 2, 3)
    converted = convert(model)
    assert type(converted[2]) is LoopOfItsOwn
    torch.testing.assert_close(converted(x), model(x))
    compiled = torch.compile(converted, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_parallel_wrappers_are_left_out() -> None:
    inner = nn.Sequential(nn.GRU(3, 4))
    model = nn.DataParallel(nn.Sequential(nn.DataParallel(nn.Linear(3, 3)), inner))
    converted = convert(model)
    assert not any(isinstance(module, nn.DataParallel) for module in converted.modules())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Checked(3, 4),
            "which defines `check_forward_args`, and that would be lost: only the `forward` of torch.nn.RNN calls it.",
        ),
        (Taken(3, 4), "has its own `ordered_weights`, a name that deploy_rnn.GRU needs"),
        (TakenInstance(3, 4), "has its own `cell`, a name that deploy_rnn.GRU needs"),
    ],
)
def test_what_cannot_be_converted_is_named(model: nn.Module, message: str) -> None:
    with pytest.raises(ConversionError) as raised:
        convert(model)
    assert message in str(raised.value)
