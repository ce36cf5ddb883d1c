"""Loops of Python over an axis of the inputs are found by running the model; others are not taken for one."""

import sys

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.python_loops import python_loop


class For(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x[:, 0]
        for t in range(1, x.size(1)):
            h = torch.tanh(h + x[:, t])
        return h


class While(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.size(1) > 1:
            x = torch.cat([x[:, :1] + x[:, 1:2], x[:, 2:]], 1)
        return x


class Comprehension(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([step.tanh() for step in x.unbind(1)])


class Masked(nn.Module):
    """Neither axis can be longer without the other."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x * mask.unsqueeze(-1)
        for step in x.unbind(1):
            x = x + step.unsqueeze(1)
        return x


class Layers(nn.Module):
    """A loop of the same length for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if x.size(1) > 5 else 2 * x


X = torch.randn(2, 5, 3)


@pytest.mark.parametrize(
    ("model", "args", "code"),
    [
        (For(), (X,), "for t in range(1, x.size(1)):"),
        (While(), (X,), "while x.size(1) > 1:"),
        (Comprehension(), (X,), "return torch.stack([step.tanh() for step in x.unbind(1)])"),
        (Masked(), (X, torch.ones(2, 5)), "for step in x.unbind(1):"),
    ],
)
def test_the_loop_is_named(model: nn.Module, args: tuple[Tensor, ...], code: str) -> None:
    trace = sys.gettrace()
    loop = python_loop(model, ExampleCall.of(model, args))
    assert sys.gettrace() is trace
    assert str(loop).startswith(f"{__file__}:")
    assert str(loop).endswith(f"`{code}` is a loop over axis 1 of `x`")


@pytest.mark.parametrize("model", [Layers(), nn.Conv1d(5, 5, 3)])
def test_a_model_without_one(model: nn.Module) -> None:
    assert python_loop(model, ExampleCall.of(model, (X,))) is None
