"""Loops of Python whose steps have no number yet stay loops: what a model may write in them, and what it may not."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.python_loops import python_loop
from deploy_rnn.export.capture.loop_code import keep_loops
from deploy_rnn.export.capture.walking import Walking
from deploy_rnn.nn.loops import noted_loops

X = torch.randn(2, 5, 3)


class Stepped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)
        self.score = nn.Linear(4, 2)

    def first(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.size(0), 4)


class ByNumber(Stepped):
    """Also an assignment before it is read, a value of the last step, and one list after another."""

    def forward(self, x: Tensor) -> Any:
        h = torch.zeros(x.shape[0], 4)
        scores, states = [], [h]
        for t in range(x.shape[1]):
            if self.training:
                step = x[:, t]
                h = h.detach()
            else:
                step = x[:, t, :]
            h = self.cell(step, h)
            score = self.score(h)
            scores += [score]
            states.append(h)
        return torch.stack(scores, dim=1), torch.stack(states), scores[-1] + score


class Backwards(Stepped):
    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        states = []
        for t in reversed(range(x.size(1))):
            h = self.cell(x[..., t, :], h)
            states.append(h.unsqueeze(1))
        return torch.cat(states[::-1], dim=1)


class ByNumberAndItem(Stepped):
    """A method is the loop, as in many packages; one list is read by number."""

    def forward(self, x: Tensor) -> Any:
        return self.run(x.unbind(1), self.first(x))

    def run(self, steps: Sequence[Tensor], h: Tensor, factor: float = 0.5) -> Any:
        states: list[Tensor] = []
        for t, step in enumerate(steps):
            h = self.cell(step + factor * steps[t], h)
            states.append(h)
        return torch.stack(states, 1), h


class Masked(Stepped):
    """Two sequences, and an axis of size 1 that stays."""

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        mask = (x[:, :, 0] > 0).float()
        states = []
        for step, weight in zip(x.split(1, dim=1), mask.unbind(1), strict=True):
            new = self.cell(step.squeeze(1), h)
            h = torch.lerp(h, new, weight.unsqueeze(-1))
            states.append(h)
        return torch.stack(states, -1)


class WithoutState(Stepped):
    """The first step makes it."""

    def forward(self, x: Tensor) -> Any:
        h = None
        states = []
        for step in x.transpose(0, 1):
            h = self.cell(step, h)
            states.append(h)
        return torch.stack(states), h


class Layers(nn.Module):
    """A loop in a loop whose number is known, states in a list, and a loop over the layers in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(3, 3), nn.GRUCell(3, 3)])

    def forward(self, x: Tensor) -> Any:
        for _ in range(2):
            states = [x.new_zeros(x.size(0), 3) for _ in self.cells]
            outputs = []
            for step in x.unbind(1):
                new_states = []
                for cell, state in zip(self.cells, states, strict=True):
                    step = cell(step, state)
                    new_states.append(step)
                states = new_states
                outputs.append(step)
            x = torch.stack(outputs, 1)
        return x, states


class Written(Stepped):
    """Into a tensor that is there before, except the first step."""

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        states = torch.zeros(x.size(0), x.size(1), 4)
        for t in range(1, x.size(1)):
            h = self.cell(x[:, t - 1], h)
            states[:, t] = h
        return states


class Windows(Stepped):
    """Slices of a known width."""

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        outputs = []
        for t in range(x.size(1) - 1):
            h = self.cell(x[:, t : t + 2, :].mean(1), h)
            outputs.append(h[:, :3] + x[..., t + 1 : t + 1 + 1, :].squeeze(-2))
        return torch.stack(outputs, 1)


class Parts(Stepped):
    """The parts of one tensor share its memory."""

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        first, second = torch.cat([x, -x], -1).chunk(2, -1)
        outputs = []
        for t in range(x.size(1)):
            h = self.cell(first[:, t] * second[:, t], h)
            outputs.append(h)
        return torch.stack(outputs, 1)


class Stopped(Stepped):
    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        for step in x.unbind(1):
            if step.size(0) > 100:
                break
            h = self.cell(step, h)
        return h


def run(model: nn.Module, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 4)
    for step in x.unbind(1):
        h = model(step, h)
    return h


class Elsewhere(Stepped):
    """In a function that is no method."""

    def forward(self, x: Tensor) -> Any:
        return run(self.cell, x)


def kept(model: nn.Module) -> tuple[nn.Module, bool]:
    """A copy, and whether one of its loops was changed."""
    call = ExampleCall.of(model, (X,))
    loop = python_loop(model, call)
    assert loop is not None
    assert (loop.tensor, loop.axis) == (0, 1)
    copied = copy.deepcopy(model)
    return copied, keep_loops(copied, loop.places)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(
    "cls",
    [ByNumber, Backwards, ByNumberAndItem, Masked, WithoutState, Layers, Written, Windows, Parts],
)
def test_a_loop_is_kept(cls: type[nn.Module]) -> None:
    model = cls().eval()
    changed, found = kept(model)
    assert found
    with torch.no_grad():
        # With a known number of steps, it is as it was.
        torch.testing.assert_close(changed(X), model(X), rtol=0, atol=0)
        with Walking(), noted_loops() as loops:
            open_axes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
            program = torch.export.export(changed, (X,), dynamic_shapes=open_axes, strict=False)
        # As torch.onnx does, which is where the operator of a loop refuses what shares memory.
        program = program.run_decompositions()
        assert all(isinstance(loop.steps, torch.SymInt) for loop in loops)
        assert loops
        longer = torch.randn(3, 9, 3)
        torch.testing.assert_close(program.module()(longer), model(longer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [Stopped, Elsewhere])
def test_a_loop_that_is_left_alone(cls: type[nn.Module]) -> None:
    changed, found = kept(cls().eval())
    assert not found
    assert "forward" not in vars(changed)
