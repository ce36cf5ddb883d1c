"""Subclasses of the layers of torch.nn, as people write them: converted, they compute the same by our layer."""

import copy
import functools
import pickle
import warnings
from abc import ABC
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn import LSTM, Recurrent, convert
from deploy_rnn.errors import ConversionError
from deploy_rnn.export import export_onnx

Item = TypeVar("Item")

X = torch.linspace(-1, 1, 30).view(5, 2, 3)
LENGTHS = torch.tensor([2, 5])


class Reordered(nn.LSTM):
    def forward(self, x: Tensor, s: Any = None) -> Any:  # type: ignore[override]
        out, (_, c) = super().forward(x, s)
        return c, out


class Residual(nn.GRU):
    """Its own constructor, parameters, buffers and parts; batch before time; `super` as of Python 2."""

    def __init__(self, size: int) -> None:
        super(Residual, self).__init__(size, size, bidirectional=True)  # noqa: UP008
        self.num_directions = 2
        self.drop = nn.Dropout(0.5)
        self.norm = nn.LayerNorm(size)
        self.gain = nn.Parameter(torch.full((size,), 0.5))
        self.register_buffer("offset", torch.ones(size))

    def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:  # type: ignore[override]
        out, _ = super(Residual, self).forward(x)  # noqa: UP008
        first, second = out.split(self.hidden_size, -1)
        added: Tensor = self.norm(x + self.drop(first + second) * self.gain * scale)
        return added + self.offset


class Named(Residual):
    """The parent's forward by its name; `super()` under a decorator, in a property and in a classmethod."""

    def forward(self, x: Tensor, *, scale: float = 3.0) -> Tensor:  # type: ignore[override]
        return Residual.forward(self, x, scale=scale) * self.half

    @torch.no_grad()
    def without_gradients(self, x: Tensor) -> Tensor:
        return super().forward(x)

    @property
    def half(self) -> float:
        return 0.5 if super().extra_repr() else 0.0

    @functools.cached_property
    def text(self) -> str:
        return super().extra_repr()

    @classmethod
    def kind(cls) -> str:
        return cls.__name__


class Packs(nn.LSTM):
    def forward(self, x: Tensor, lengths: Tensor) -> Any:  # type: ignore[override]
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        out, (h, _) = super().forward(packed)
        return pad_packed_sequence(out, total_length=x.size(0))[0], h[-1]


class Doubles(ABC):  # noqa: B024
    """As forecasting libraries have it."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(2 * input, hx)  # type: ignore[misc]


class Mixed(Doubles, nn.LSTM):
    pass


class Behind(Generic[Item]):
    def forward_twice(self, x: Item) -> Any:
        return self(self(x)[0])  # type: ignore[operator]


class WithMixinBehind(nn.LSTM, Behind[Tensor]):
    pass


class Called(nn.GRU):
    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)[0]


KINDS: dict[str, tuple[Callable[[], nn.RNNBase], tuple[Tensor, ...]]] = {
    "reordered": (lambda: Reordered(3, 4), (X,)),
    "residual": (lambda: Residual(3), (X,)),
    "named": (lambda: Named(3), (X,)),
    "packs": (lambda: Packs(3, 4), (X, LENGTHS)),
    "mixin before": (lambda: Mixed(3, 4), (X,)),
    "mixin behind": (lambda: WithMixinBehind(3, 4), (X,)),
    "called": (lambda: Called(3, 4), (X,)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_subclass_computes_stays(kind: str) -> None:
    make, args = KINDS[kind]
    layer = make().eval()
    converted = convert(layer)
    assert isinstance(converted, Recurrent)
    assert list(converted.state_dict()) == list(layer.state_dict())
    torch.testing.assert_close(converted(*args), layer(*args))
    for again in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert type(again) is type(converted)
        torch.testing.assert_close(again(*args), layer(*args))


def test_helpers_that_mean_their_class() -> None:
    layer = Named(3).eval()
    converted: Any = convert(layer)
    torch.testing.assert_close(converted.without_gradients(X), layer.without_gradients(X))
    assert not converted.without_gradients(X).requires_grad
    assert converted.text == layer.text
    assert converted.kind() == "Named"
    torch.testing.assert_close(converted(X, scale=1.0), layer(X, scale=1.0))
    behind = WithMixinBehind(3, 3)
    torch.testing.assert_close(convert(behind).forward_twice(X), behind.forward_twice(X))


def test_a_class_within_a_function() -> None:
    class Local(nn.RNN):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            out: Tensor = super(Local, self).forward(x)[0]  # noqa: UP008
            return 2 * out

    layer = parametrizations.weight_norm(Local(3, 4), "weight_hh_l0")
    torch.testing.assert_close(convert(nn.Sequential(layer))(X), layer(X))


def test_gradients_and_training_reach_all_parameters() -> None:
    layer = Residual(3)
    converted = convert(layer)
    converted(X).square().sum().backward()
    assert all(weight.grad is not None for weight in converted.parameters())


@pytest.mark.parametrize("kind", ["reordered", "packs"])
def test_a_subclass_in_a_file(kind: str, tmp_path: Path) -> None:
    """Verified against the subclass itself, which is no bare layer: its arguments and results are its own."""
    make, args = KINDS[kind]
    report = export_onnx(make().eval(), args, tmp_path / "layer.onnx", form="scan")
    assert report.inputs[0].name == "x"
    assert report.inputs[0].shape == ("T", "B", 3)


class Explicit(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return nn.LSTM.forward(self, x)[0]


class ByClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = Reordered(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Reordered.forward(self.rnn, x)[1]
        return out


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(1, x.size(1), 4)
        weights = self.rnn._flat_weights
        out: Tensor = torch.gru(x, h, weights, True, 1, 0.0, False, False, False)[0]  # type: ignore[arg-type]
        return out


@pytest.mark.parametrize("model", [Explicit(3, 4), ByClass()])
def test_the_forward_of_a_class_is_that_of_the_new_one(model: nn.Module) -> None:
    torch.testing.assert_close(convert(model)(X), model(X))


def test_code_that_needs_the_layer_of_torch_is_named() -> None:
    with pytest.raises(ConversionError) as raised:
        convert(Functional())
    message = str(raised.value)
    assert message.startswith(f"`self.rnn._flat_weights` at {__file__}:")
    assert message.endswith(
        "call the layer itself, `layer(x)`, or `super().forward(x)` in a subclass."
    )


class WeightDrop(nn.Module):
    """Drops weights of a layer in its forward, and tells torch.nn's layer so, as the AWD-LSTM does."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)
        self.raw = nn.Parameter(self.rnn.weight_hh_l0.detach().clone())
        del self.rnn._parameters["weight_hh_l0"]
        self.rnn.weight_hh_l0 = self.raw.data

    def forward(self, x: Tensor) -> Tensor:
        names = self.rnn._flat_weights_names
        halved = {"weight_hh_l0": self.raw * 0.5}
        self.rnn._flat_weights = [halved.get(name, getattr(self.rnn, name)) for name in names]
        with warnings.catch_warnings():  # that they are not in one piece of memory
            warnings.simplefilter("ignore")
            output: Tensor = self.rnn(x)[0]
        return output


def test_weights_that_a_forward_hands_to_the_layer_of_torch() -> None:
    model = WeightDrop().eval()
    with torch.no_grad():
        torch.testing.assert_close(convert(model)(X), model(X))


def test_a_call_by_the_class_is_a_call_of_the_layer() -> None:
    class CalledByClass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            called: Tensor = nn.LSTM.__call__(self.rnn, x)[0]
            return called + self.rnn.forward(x)[0]

    model = CalledByClass()
    converted = convert(model)
    assert type(converted.rnn) is LSTM
    torch.testing.assert_close(converted(X), model(X))
