"""`torchscript.scripted`: what is said of models that TorchScript refuses."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.errors import ExportError
from deploy_rnn.model_errors import line_in_text
from deploy_rnn.packaging.torchscript import scripted


class Limited(nn.Module):
    """Compares a size with an attribute that is None."""

    def __init__(self) -> None:
        super().__init__()
        self.most = None

    def forward(self, x: Tensor) -> Tensor:
        if self.most is not None and x.shape[0] > self.most:
            x = x[: self.most]
        return x


class Padded(nn.Module):
    """Has a module of torch.nn that TorchScript does not take: its `value` is an int."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Tanh(), nn.Sequential(nn.ConstantPad1d((1, 1), 0)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Typed(nn.Module):
    """The type of an attribute is one that TorchScript does not know."""

    layer: Callable[[Tensor], Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Limited(),
            r"`if self.most is not None and x.shape\[0\] > self.most:`: TorchScript cannot compile Limited: "
            r"`b` of `gt` must be int or float or number or Tensor, got NoneType\.$",
        ),
        (
            Padded(),
            r"^TorchScript cannot compile `layers.1.0`, a ConstantPad1d: "
            r"`value` of `pad` must be Optional\[float\], got int\.$",
        ),
        (
            nn.Sequential(Typed()),
            r"^TorchScript cannot compile `0`, a Typed: Unknown type annotation: .+Callable.+\.$",
        ),
    ],
)
def test_a_refusal_has_one_reason_and_its_place(model: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        scripted(model.eval())


class Attached(nn.Module):
    """As Lightning has it: a property that raises where there is no trainer, but while a flag is set."""

    _jit_is_scripting = False
    __jit_unused_properties__ = ("trainer",)

    @property
    def trainer(self) -> None:
        if not self._jit_is_scripting:
            raise RuntimeError("Trained is not attached to a `Trainer`.")


class Trained(Attached):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def test_a_module_of_lightning() -> None:
    assert torch.equal(scripted(Trained().eval())(torch.zeros(2)), torch.ones(2))
    assert not Attached._jit_is_scripting


class Lazy(ModuleType):
    """A module of a package that imports another one when it is asked for anything."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"Lazy import for {name} failed")


def test_lazy_modules_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    assert line_in_text('File "model.py", line 7') == "model.py:7"
