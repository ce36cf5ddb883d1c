"""A model that asks for the class of its layers: converted, it has the answers that it had, or it is refused."""

import copy
import functools
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn import LSTM, convert
from deploy_rnn.errors import ConversionError
from deploy_rnn.export import export_onnx


class Model(nn.Module):
    def __init__(self, rnn: nn.Module | None = None) -> None:
        super().__init__()
        self.rnn = rnn or nn.LSTM(3, 4)

    def last(self, x: Tensor) -> Tensor:
        state = self.rnn(x)[1]
        return state[0] if isinstance(state, tuple) else state


this_module = sys.modules[__name__]

KINDS = (nn.LSTM, nn.GRU)


class Isinstance(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if isinstance(self.rnn, nn.LSTM) else 1)


class Kinds(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if isinstance(self.rnn, KINDS) else 1)


class Union(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if isinstance(self.rnn, nn.LSTM | nn.GRU) else 1)


class Base(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if isinstance(self.rnn, nn.RNNBase) else 1)


class Exact(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if type(self.rnn) is nn.LSTM else 1)


class AmongKinds(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if self.rnn.__class__ in KINDS else 1)


class Subclass(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if issubclass(type(self.rnn), nn.LSTM) else 1)


class Table(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * {nn.LSTM: 2}.get(type(self.rnn), 1)


class Matched(Model):
    def forward(self, x: Tensor) -> Tensor:
        match self.rnn:
            case nn.LSTM():
                return self.last(x) * 2
        return self.last(x)


class InLocalVariable(Model):
    def forward(self, x: Tensor) -> Tensor:
        rnn = self.rnn
        return self.last(x) * (2 if isinstance(rnn, nn.LSTM) else 1)


class InLoop(Model):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            if type(layer) is nn.LSTM:
                x = x * 2
        return self.last(x)


class InHelper(Model):
    def scale(self) -> int:
        return 2 if isinstance(self.rnn, nn.LSTM) else 1

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * self.scale()


class InProperty(Model):
    @property
    def scale(self) -> int:
        return 2 if isinstance(self.rnn, nn.LSTM) else 1

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * self.scale


class InStaticMethod(Model):
    @staticmethod
    def scale(rnn: nn.Module) -> int:
        return 2 if isinstance(rnn, nn.LSTM) else 1

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * self.scale(self.rnn)


def scale(rnn: nn.Module) -> int:
    return 2 if isinstance(rnn, nn.LSTM) else 1


class InFunction(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * scale(self.rnn)


class InParent(Isinstance):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Decorated(Model):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if isinstance(self.rnn, nn.LSTM) else 1)


class Asserted(Model):
    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.rnn, nn.LSTM)
        return self.last(x)


class InLambda(Model):
    def __init__(self) -> None:
        super().__init__()
        self.scale = lambda rnn: 2 if isinstance(rnn, nn.LSTM) else 1

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * self.scale(self.rnn)


class Picker:
    def pick(self, rnn: nn.Module) -> int:
        return 2 if isinstance(rnn, nn.LSTM) else 1


class InObject(Model):
    def __init__(self) -> None:
        super().__init__()
        self.picker = Picker()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * self.picker.pick(self.rnn)


class InClass(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * InStaticMethod.scale(self.rnn)


class InModule(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * this_module.scale(self.rnn)


class Named(Model):
    kind = "LSTM"

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if isinstance(self.rnn, getattr(nn, self.kind)) else 1)


class InCachedProperty(Model):
    @functools.cached_property
    def scale(self) -> int:
        return 2 if isinstance(self.rnn, nn.LSTM) else 1

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * self.scale


class Gotten(Model):
    def forward(self, x: Tensor) -> Tensor:
        rnn = getattr(self, "rn" + "n")
        return self.last(x) * (2 if isinstance(rnn, nn.LSTM) else 1)


class Handled(Model):
    def forward(self, x: Tensor) -> Tensor:
        handlers = {nn.LSTM: 2, nn.GRU: 1}
        return self.last(x) * handlers[self.rnn.__class__]


class InGrandparent(InParent):
    """The class of `super()` is found by the order of classes: `scale` of the parent, not of this one."""

    def scale(self) -> int:
        return 0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class WithOwnScale(InHelper):
    def scale(self) -> int:
        return super().scale() + 1


class Overriding(WithOwnScale):
    def scale(self) -> int:
        return 100

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * super().scale()


class InAttribute(Model):
    kinds = (nn.LSTM, nn.GRU)

    def __init__(self) -> None:
        super().__init__()
        self.names = {nn.LSTM: "LSTM"}

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if isinstance(self.rnn, self.kinds) else 1)


class InDefault(Model):
    def scale(self, kinds: Any = (nn.LSTM,)) -> int:
        return 2 if isinstance(self.rnn, kinds) else 1

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * self.scale()


def even(rnn: nn.Module, count: int) -> int:
    return (2 if isinstance(rnn, nn.LSTM) else 1) if count == 0 else odd(rnn, count - 1)


def odd(rnn: nn.Module, count: int) -> int:
    return even(rnn, count - 1) if count else 0


class InCircle(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * even(self.rnn, 2)


@functools.cache
def cached_scale(cls: type) -> int:
    return 2 if issubclass(cls, nn.LSTM) else 1


class InCache(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * cached_scale(type(self.rnn))


SCALES = {nn.LSTM: 2, nn.GRU: 1}


class InTable(Model):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = x * SCALES[type(layer)]
        return self.last(x)


@functools.singledispatch
def chosen(rnn: nn.Module) -> int:
    return 1


@chosen.register
def _(rnn: nn.LSTM) -> int:
    return 2


class Dispatched(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * chosen(self.rnn)


class ByTheClass(Model):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.LSTM.forward(self.rnn, x)[1][0] * 2  # type: ignore[arg-type]


class Own(nn.LSTM):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return nn.LSTM.forward(self, 2 * x)


class ByTypeOfTheLayer(Model):
    def __init__(self) -> None:
        super().__init__(Own(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        assert type(self.rnn) is Own
        return super(Own, self.rnn).forward(x)[1][0]


ASKING = [
    InObject, InModule, InCachedProperty, Gotten, Handled,
    Isinstance, Kinds, Union, Base, Exact, AmongKinds, Subclass, Table, Matched, InLocalVariable, InLoop, InHelper,
    InProperty, InStaticMethod, InFunction, InParent, Decorated, Asserted, InLambda, InGrandparent, WithOwnScale,
    Overriding, InAttribute, InCircle, InCache, InTable, Dispatched, ByTheClass, ByTypeOfTheLayer,
]  # fmt: skip

X = torch.linspace(-1, 1, 30).view(5, 2, 3)


@pytest.mark.parametrize("cls", ASKING)
def test_a_question_about_the_class_has_the_answer_that_it_had(cls: type[Model]) -> None:
    model = cls()
    expected = model(X)
    converted = convert(nn.Sequential(model))
    assert isinstance(converted[0].rnn, LSTM)
    assert isinstance(converted[0], cls)
    torch.testing.assert_close(converted(X), expected)
    again = copy.deepcopy(converted)
    assert type(again[0]) is type(converted[0])
    torch.testing.assert_close(again(X), expected)
    # The model itself still means torch.nn.
    torch.testing.assert_close(model(X), expected)


REFUSED = [InClass, Named, InDefault]


@pytest.mark.parametrize("cls", REFUSED)
def test_the_question_and_its_line_are_named(cls: type[Model]) -> None:
    with pytest.raises(ConversionError) as raised:
        convert(nn.Sequential(cls()))
    message = str(raised.value)
    assert message.startswith("`0.rnn` would no longer be a torch.nn.LSTM")
    assert f"{__file__}:" in message
    line = int(message.partition(f"{__file__}:")[2].partition(".")[0])
    text = Path(__file__).read_text(encoding="utf-8").splitlines()[line - 1]
    assert "isinstance(" in text
    assert "`mode` there, which stays 'LSTM'" in message


class OnlyFlattens(Model):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.rnn, (nn.LSTM, nn.GRU)):
            self.rnn.flatten_parameters()
        for layer in self.modules():
            if isinstance(layer, nn.RNNBase):
                layer.flatten_parameters()
        return self.last(x)


class AsksForMode(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if self.rnn.mode == "LSTM" else 1)


class AsksForName(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if type(self.rnn).__name__ == "LSTM" else 1)


class AsksForOurs(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if isinstance(self.rnn, (nn.LSTM, LSTM)) else 1)


class AsksForOthers(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (2 if isinstance(self.rnn, nn.GRU) or type(x) is not Tensor else 1)


class AskedBefore(Model):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2 if isinstance(self.rnn, nn.LSTM) else 1
        self.apply(self.draw)

    def draw(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            nn.init.normal_(module.weight_hh_l0)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * self.scale


@pytest.mark.parametrize(
    "cls", [OnlyFlattens, AsksForMode, AsksForName, AsksForOurs, AsksForOthers, AskedBefore]
)
def test_what_stays_right_is_converted(cls: type[Model]) -> None:
    model = cls()
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(convert(model)(x), model(x))


@pytest.mark.parametrize("cls", [Isinstance, InParent, InFunction, InObject])
def test_a_model_that_asks_is_pickled(cls: type[Model]) -> None:
    converted = convert(cls())
    again = pickle.loads(pickle.dumps(converted))
    assert type(again) is type(converted)
    torch.testing.assert_close(again(X), converted(X))


@pytest.mark.parametrize("cls", [ByTheClass, InParent])
def test_renewed_code_is_one_graph(cls: type[Model]) -> None:
    model = cls().eval()
    compiled = torch.compile(convert(model), fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for x in (X, torch.randn(7, 3, 3)):
            torch.testing.assert_close(compiled(x), model(x))


def test_renewed_code_in_a_file(tmp_path: Path) -> None:
    export_onnx(ByTheClass().eval(), (X,), tmp_path / "model.onnx", form="scan")


def test_layers_that_stay_have_their_answers_too() -> None:
    """One of torch.nn's that is not registered stays; our own was there before."""

    class TwoKinds(Model):
        def __init__(self, other: nn.Module) -> None:
            super().__init__()
            self.others = [other]
            if isinstance(other, LSTM):
                self.other = other

        def forward(self, x: Tensor) -> Tensor:
            return x * sum(isinstance(layer, nn.LSTM) for layer in (self.rnn, self.others[0]))

    for other in (nn.LSTM(3, 4), LSTM(3, 4)):
        with pytest.raises(
            ConversionError, match=r"`others?` stays a .*: `isinstance.layer, nn.LSTM.`"
        ):
            convert(TwoKinds(other))
    assert convert(TwoKinds(nn.Linear(3, 4)))(X).equal(X)


def test_a_hook_that_asks() -> None:
    def double(module: Any, args: Any, output: Tensor) -> Tensor:
        return output * 2 if isinstance(module.rnn, nn.LSTM) else output

    model = AsksForMode()
    model.register_forward_hook(double)
    torch.testing.assert_close(convert(model)(X), model(X))


def test_code_without_a_text() -> None:
    """As in an interactive session."""
    names: dict[str, Any] = {"nn": nn, "Model": Model}
    exec(
        "class Typed(Model):\n"
        "    def forward(self, x):\n"
        "        return self.last(x) * (2 if isinstance(self.rnn, nn.LSTM) else 1)\n",
        names,
    )
    with pytest.raises(ConversionError, match=r"`rnn` would no longer be a torch\.nn\.LSTM"):
        convert(names["Typed"]())
