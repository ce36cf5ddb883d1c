"""`deploy_rnn.convert`: the same model with our layers in it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from deploy_rnn import RNN, convert
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


class Overridden(nn.RNN):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, h_n = super().forward(input, hx)
        return 2 * output, h_n


class Helpful(nn.RNN):
    def last(self, x: Tensor) -> Tensor:
        state: Tensor = self(x)[1]
        return state


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


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(ConversionError, match="`0` is scripted; convert it"):
        convert(nn.Sequential(torch.jit.script(nn.RNN(3, 4))))


def test_a_subclass_with_nothing_of_its_own_is_converted() -> None:
    layer = Inherited(3, 4)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(convert(layer)(x), layer(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(3, 3), nn.RNNBase("GRU", 3, 4)),
            "`1` is a torch.nn.RNNBase; only torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM can be converted.",
        ),
        (nn.Sequential(Overridden(3, 4)), "which defines `forward`, and that would be lost"),
        (Helpful(3, 4), "which defines `last`, and that would be lost"),
    ],
)
def test_what_cannot_be_converted_is_named(model: nn.Module, message: str) -> None:
    with pytest.raises(ConversionError) as raised:
        convert(model)
    assert message in str(raised.value)
