"""Calls that are drawn for a model: among them is one that it takes, and random ones come first."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from deploy_rnn.checking.draws import Draws, ExampleInput, stretched
from deploy_rnn.checking.example_call import ExampleCall

X = torch.randn(3, 8, 4)
ROWS = torch.tensor([8, 3, 5])
MASK = torch.arange(8) < ROWS[:, None]


class Uses(nn.Module):
    def __init__(self, use: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.use = use

    def forward(self, x: Tensor, given: Tensor) -> Any:
        return self.use(x, given)


def pack(x: Tensor, lengths: Tensor, *, is_sorted: bool = False) -> Tensor:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=is_sorted)
    return packed.data


def clamped(x: Tensor, lengths: Tensor) -> Tensor:
    return pack(x, lengths.clamp(min=1))


def halved(x: Tensor, lengths: Tensor) -> Tensor:
    return pack(x[:, ::2], (lengths + 1) // 2)


def last(x: Tensor, lengths: Tensor) -> Tensor:
    return x[torch.arange(x.size(0)), lengths - 1]


def shares(x: Tensor, share: Tensor) -> Tensor:
    return pack(x, share * x.size(1))


def longest_first(x: Tensor, lengths: Tensor) -> Tensor:
    return pack(x, lengths, is_sorted=True)


def a_full_row(x: Tensor, lengths: Tensor) -> Tensor:
    return x[torch.arange(int(lengths.max())).expand(x.size(0), -1) < lengths[:, None], None]


def full_mask(x: Tensor, lengths: Tensor) -> Tensor:
    within = torch.arange(int(lengths.max())) < lengths[:, None]
    return x * within[..., None]


def right_padded(x: Tensor, mask: Tensor) -> Tensor:
    lengths = mask.sum(1)
    if not torch.equal(mask, torch.arange(x.size(1)) < lengths[:, None]):
        raise ValueError("the padding must be on the right")
    return pack(x, lengths)


def left_padded(x: Tensor, mask: Tensor) -> Tensor:
    return right_padded(x, mask.flip(1))


def padding(x: Tensor, mask: Tensor) -> Tensor:
    return right_padded(x, ~mask)


def tokens(x: Tensor, ids: Tensor) -> Tensor:
    return pack(x, (ids != 0).sum(1))


def frames(x: Tensor, samples: Tensor) -> Tensor:
    """Lengths in samples, of which each step has 160."""
    return pack(x, samples // 160)


def at_least_four(x: Tensor, lengths: Tensor) -> Tensor:
    if int(lengths.min()) < min(4, x.size(1)):
        raise ValueError("too short for the kernel")
    return pack(x, lengths)


GIVEN: list[tuple[Callable[[Tensor, Tensor], Any], Tensor]] = [
    (clamped, ROWS),
    (clamped, torch.tensor([7, 0, 5])),
    (halved, ROWS),
    (halved, ROWS.int()),
    (last, ROWS),
    (last, torch.tensor([6, 3, 5])),
    (shares, torch.tensor([0.25, 1.0, 0.5])),
    (shares, torch.tensor([1.0, 1.0, 1.0])),
    (longest_first, torch.tensor([8, 5, 3])),
    (longest_first, torch.tensor([7, 5, 3])),
    (a_full_row, ROWS),
    (full_mask, ROWS),
    (right_padded, MASK),
    (left_padded, MASK.flip(1)),
    (padding, ~MASK),
    (tokens, MASK * torch.randint(1, 9, (3, 8))),
    (frames, ROWS * 160),
    (at_least_four, torch.tensor([8, 4, 5])),
]


def draws(use: Callable[[Tensor, Tensor], Any], given: Tensor) -> tuple[Uses, Draws]:
    model = Uses(use)
    call = ExampleCall.of(model, (X, given))
    call.run(model)
    axes: tuple[int | str, ...] = ("B", "T")[: given.dim()]
    inputs = [ExampleInput("x", ("B", "T", 4), X, None), ExampleInput("given", axes, given, None)]
    return model, Draws(call, inputs)


def taken(model: nn.Module, drawn: Draws, batch: int, steps: int) -> tuple[str, ExampleCall]:
    """The first call that the model takes."""
    for label, call in drawn.calls({"B": batch, "T": steps}, torch.Generator().manual_seed(0)):
        try:
            call.run(model)
        except (RuntimeError, ValueError, IndexError):
            continue
        return label, call
    raise AssertionError("none is taken")


@pytest.mark.parametrize(("use", "given"), GIVEN)
def test_one_of_the_calls_is_taken(use: Callable[[Tensor, Tensor], Any], given: Tensor) -> None:
    model, drawn = draws(use, given)
    for batch, steps in [(1, 3), (3, 7), (7, 1), (2, 5), (3, 200), (3, 8)]:
        _, call = taken(model, drawn, batch, steps)
        x, other = call.tensors
        assert x.shape == (batch, steps, 4)
        assert other.dtype is given.dtype
        assert other.shape == (batch, steps)[: given.dim()]


def test_lengths_that_no_file_names_are_of_any_number_of_steps() -> None:
    """Not only those of the example, and up to all of many steps."""
    model, drawn = draws(last, ROWS)
    label, call = taken(model, drawn, 50, 100)
    assert label == "random"
    lengths = call.tensors[1]
    assert lengths.min() >= 1
    assert 90 < lengths.max() <= 100
    assert len(lengths.unique()) > 20


def test_numbers_of_the_example_are_drawn_where_they_only_look_like_lengths() -> None:
    """Identities of speakers, by chance up to the number of steps."""
    table = nn.Embedding(9, 4)
    model, drawn = draws(lambda x, speakers: x + table(speakers)[:, None], ROWS)
    label, call = taken(model, drawn, 9, 200)
    assert label == "random, numbers of the example"
    assert set(call.tensors[1].tolist()) <= {8, 3, 5}


def test_a_mask_and_lengths_that_must_agree() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
            if not torch.equal(mask.sum(1), lengths):
                raise ValueError("they must agree")
            return right_padded(x, mask)

    model = Both()
    call = ExampleCall.of(model, (X, MASK, ROWS))
    inputs = [
        ExampleInput("x", ("B", "T", 4), X, None),
        ExampleInput("mask", ("B", "T"), MASK, None),
        ExampleInput("lengths", ("B",), ROWS, None),
    ]
    for batch, steps in [(1, 3), (3, 7), (7, 1), (4, 13)]:
        label, _ = taken(model, Draws(call, inputs), batch, steps)
        assert label in ("example stretched", "random, largest numbers")


def test_random_values_come_first_and_no_call_twice() -> None:
    _, drawn = draws(last, ROWS)
    calls = list(drawn.calls({"B": 3, "T": 7}, torch.Generator().manual_seed(0)))
    assert calls[0][0] == "random"
    for number, (_, call) in enumerate(calls):
        for _, earlier in calls[:number]:
            assert not all(map(torch.equal, call.tensors, earlier.tensors))


def test_stretching_keeps_the_order() -> None:
    example = torch.tensor([9, 7, 4])
    assert stretched(example, [6]).tolist() == [9, 9, 7, 7, 4, 4]
    assert stretched(example, [2]).tolist() == [9, 7]
    assert stretched(example, [4]).tolist() == [9, 9, 7, 4]


def test_complex_numbers_are_drawn_from_the_example() -> None:
    spectrum = torch.randn(2, 3, dtype=torch.complex64)
    call = ExampleCall.of(nn.Identity(), (spectrum,))
    draws = Draws(call, [ExampleInput("input", ("B", "T"), spectrum, None)])
    random = torch.Generator().manual_seed(0)
    for _, drawn in draws.calls({"B": 4, "T": 5}, random):
        (tensor,) = drawn.tensors
        assert tensor.shape == (4, 5)
        assert tensor.dtype is torch.complex64
