"""Which axes are the batch and the steps, found by running the model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import deploy_rnn
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.trials import Reference
from deploy_rnn.packaging.found_axes import found_axes


class Model(nn.Module):
    def __init__(self, forward: Callable[..., Any], *, batch_first: bool = True) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4, batch_first=batch_first)
        self.code = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.code(self.rnn, *inputs)


def plain(rnn: nn.GRU, x: Tensor, *rest: Tensor) -> Any:
    return rnn(x)[0]


def masked(rnn: nn.GRU, x: Tensor, mask: Tensor) -> Any:
    return rnn(x)[0] * mask.unsqueeze(2)


def packed(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Any:
    return pad_packed_sequence(rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))[0])[0]


def passed_on(rnn: nn.GRU, x: Tensor, ids: Tensor, table: Tensor, weights: Tensor) -> Any:
    return rnn(x)[0] @ table.t() * weights.sum(), ids


def doubled(rnn: nn.GRU, x: Tensor) -> Any:
    return rnn(torch.cat([x, x]))[0]


def two_rates(rnn: nn.GRU, x: Tensor, samples: Tensor) -> Any:
    return rnn(x)[0] + samples.unflatten(1, (x.size(1), 4))


def with_memory(rnn: nn.GRU, x: Tensor, memory: Tensor, mask: Tensor) -> Any:
    weights = (rnn(x)[0] @ memory.transpose(1, 2)) * mask.unsqueeze(1)
    return weights @ memory


def begun(rnn: nn.GRU, x: Tensor, y: Tensor) -> Any:
    return rnn(x)[0].unsqueeze(2) + rnn(torch.cat([y[:, :1], y], 1))[0].unsqueeze(1)


def framed(rnn: nn.GRU, x: Tensor) -> Any:
    return rnn(x.unfold(1, 5, 3))[0]


def hierarchical(rnn: nn.GRU, x: Tensor) -> Any:
    sentences = rnn(x.flatten(0, 1))[1][0].unflatten(0, x.shape[:2])
    return rnn(torch.nn.functional.pad(sentences, (0, 1)))[0]


def decoded(rnn: nn.GRU, x: Tensor, y: Tensor) -> Any:
    return rnn(y, rnn(x)[1])[0]


@pytest.mark.parametrize(
    ("code", "shapes", "expected"),
    [
        (plain, [(3, 6, 5)], [{0: "B", 1: "T"}]),
        (plain, [(3, 3, 5)], [{0: "B", 1: "T"}]),
        (plain, [(1, 1, 5)], [{0: "B", 1: "T"}]),
        (plain, [(3, 6, 5), (3, 6), (7,)], [{0: "B", 1: "T"}, {0: "B", 1: "T"}, {0: "inputs_2_0"}]),
        (plain, [(6, 5)], [{0: "T"}]),
        (masked, [(3, 6, 5), (3, 6)], [{0: "B", 1: "T"}, {0: "B", 1: "T"}]),
        (
            passed_on,
            [(3, 6, 5), (3,), (3, 4), (3,)],
            [{0: "B", 1: "T"}, {0: "B"}, {0: "inputs_2_0"}, {0: "inputs_3_0"}],
        ),
        (
            with_memory,
            [(3, 6, 5), (3, 7, 4), (3, 7)],
            [{0: "B", 1: "T"}, {0: "B", 1: "inputs_1_1"}, {0: "B", 1: "inputs_1_1"}],
        ),
        # The batch or the steps are computed from an axis.
        (doubled, [(3, 6, 5)], [{0: "B", 1: "T"}]),
        (begun, [(3, 6, 5), (3, 4, 5)], [{0: "B", 1: "T"}, {0: "B", 1: "T1"}]),
        (framed, [(3, 40)], [{0: "B", 1: "T"}]),
        (hierarchical, [(3, 4, 6, 5)], [{0: "B", 1: "T1", 2: "T"}]),
        (decoded, [(3, 6, 5), (3, 4, 5)], [{0: "B", 1: "T"}, {0: "B", 1: "T1"}]),
        # As many samples as four times its steps.
        (two_rates, [(3, 6, 5), (3, 24)], [{0: "B"}, {0: "B"}]),
    ],
)
def test_axes_of_a_model(code: Any, shapes: Any, expected: Any) -> None:
    model = Model(code)
    call = ExampleCall.of(model, tuple(torch.randn(shape) for shape in shapes))
    assert found_axes(Reference(model), call).names == expected


def packed_in_order(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Any:
    return rnn(pack_padded_sequence(x, lengths))[1]


def last_steps(rnn: nn.GRU, x: Tensor) -> Any:
    return rnn(x[:, -3:])[0]


def of_table(rnn: nn.GRU, x: Tensor) -> Any:
    return rnn(torch.ones(2, 3, 5))[0] + x.sum()


@pytest.mark.parametrize(
    ("code", "shape", "fixed"),
    [
        (plain, (3, 6, 5), ()),
        (framed, (3, 40), ()),
        (hierarchical, (3, 4, 6, 5), ()),
        (last_steps, (3, 6, 5), ("T",)),
        (of_table, (3, 6, 5), ("T", "B")),
    ],
)
def test_steps_that_are_of_no_axis_are_known(code: Any, shape: Any, fixed: Any) -> None:
    model = Model(code)
    call = ExampleCall.of(model, torch.randn(shape))
    assert found_axes(Reference(model), call).fixed == fixed


@pytest.mark.parametrize(
    ("code", "lengths"),
    [(packed, [6, 2, 4]), (packed, [5, 2, 4]), (packed_in_order, [5, 3, 2])],
)
def test_the_axes_of_a_model_that_packs(code: Any, lengths: list[int]) -> None:
    """The lengths have the batch on another axis than the input; the longest row may have fewer steps than that."""
    model = Model(code, batch_first=False)
    call = ExampleCall.of(model, (torch.randn(6, 3, 5), torch.tensor(lengths)))
    assert found_axes(Reference(model), call).names == [{0: "T", 1: "B"}, {0: "B"}]


def packed_by_mask(rnn: nn.GRU, x: Tensor, mask: Tensor) -> Any:
    lengths = mask.sum(1)
    output, _ = rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(output, batch_first=True, total_length=x.size(1))[0]


@pytest.mark.parametrize(("lengths", "name"), [([6, 2, 4], "T"), ([5, 2, 4], "inputs_1_1")])
def test_a_mask_whose_sums_are_the_lengths_has_the_steps(lengths: list[int], name: str) -> None:
    """The input alone may have more steps than the mask; the mask alone only if none of its rows has every step."""
    model = Model(packed_by_mask)
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    call = ExampleCall.of(model, (torch.randn(3, 6, 5), mask))
    assert found_axes(Reference(model), call).names == [{0: "B", 1: "T"}, {0: "B", 1: name}]


def test_a_model_that_fails_on_the_example_has_no_axes() -> None:
    model = Model(plain)
    call = ExampleCall.of(model, (torch.randn(6, 3, 7),))
    assert found_axes(Reference(model), call).names == [{}]


class Loop(nn.Module):
    """A loop over x (T, B, 3) next to a memory (B, S, 4), with a layer that takes one step in it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(7, 4)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        def step(h: Tensor, slice: Tensor) -> tuple[Tensor, Tensor]:
            _, new_h = self.gru(torch.cat([slice, memory.mean(1)], -1).unsqueeze(0), h.unsqueeze(0))
            return new_h[0], new_h[0]

        outputs: Tensor = deploy_rnn.scan(step, x.new_zeros(x.size(1), 4), x)[1]
        return outputs


def test_the_axes_of_a_loop() -> None:
    model = Loop().eval()
    call = ExampleCall.of(model, (torch.randn(5, 2, 3), torch.randn(2, 6, 4)), None)
    assert found_axes(Reference(model), call).names == [{0: "T", 1: "B"}, {0: "B", 1: "memory_1"}]


def test_the_batch_of_a_cell_is_found() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(5, 4)

        def forward(self, x: Tensor, h: Tensor, table: Tensor) -> Any:
            return self.cell(x, h) @ table

    shapes = [(3, 5), (3, 4), (4, 3)]
    model = Step()
    call = ExampleCall.of(model, tuple(map(torch.randn, shapes)), None)
    assert found_axes(Reference(model), call).names == [{0: "B"}, {0: "B"}, {1: "table_1"}]
