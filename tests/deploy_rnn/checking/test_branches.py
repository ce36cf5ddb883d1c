"""A condition on one size is a range of it, where it is one; PyTorch resolves the simple ones only."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deploy_rnn.checking.branches import Condition, conditions_on
from deploy_rnn.tensor_spec import SizeRange


def assumed(decide: Callable[..., Any], **example_sizes: int) -> list[Condition]:
    """The conditions of a branch on the sizes of a tensor, as torch.export notes them."""
    taken: list[Condition] = []

    class Deciding(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result = x + 1 if decide(*x.shape) else x - 1
            sizes: list[Any] = [*x.shape]
            taken.extend(conditions_on(dict(zip(example_sizes, sizes, strict=True))))
            return result

    x = torch.zeros(*example_sizes.values())
    shapes = (dict.fromkeys(range(x.dim()), torch.export.Dim.DYNAMIC),)
    torch.export.export(
        Deciding(),
        (x,),
        dynamic_shapes=shapes,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    return taken


@pytest.mark.parametrize(
    ("decide", "example", "expected"),
    [
        (lambda T: math.ceil((T - 1) / 2) > 6, 40, SizeRange(14)),
        (lambda T: math.ceil(T / 2) > 6, 7, SizeRange(1, 12)),
        (lambda T: math.ceil(T / 3) > 4000, 16000, SizeRange(12001)),
        (lambda T: math.ceil(T / 3) > 4000, 5000, SizeRange(1, 12000)),
        # Always true.
        (lambda T: math.ceil(T / 2) >= 0, 40, None),
        # Not a range.
        (lambda T: math.ceil(T / 2) % 2 > 0, 6, None),
        (lambda T: math.ceil(T / 2) == 1, 6, None),
    ],
)
def test_the_range_of_a_condition(
    decide: Callable[..., Any], example: int, expected: SizeRange | None
) -> None:
    found = [condition.size_range(example) for condition in assumed(decide, T=example)]
    assert [sizes for sizes in found if sizes] == ([expected] if expected else [])


def test_a_condition_on_two_sizes_is_no_range() -> None:
    conditions = assumed(lambda B, T: math.ceil(T / 2) > B, B=3, T=40)
    assert conditions
    assert all(condition.size_range(40) is None for condition in conditions)
