"""The sizes and inputs that a file is checked with, and the model that it must equal."""

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.trials import Reference, draw, resized, size_assignments
from deploy_rnn.errors import ExportError


def test_every_axis_gets_every_size_and_two_axes_differ() -> None:
    assignments = size_assignments(["B", "T"], [1, 3, 7])
    assert assignments == [{"B": 1, "T": 3}, {"B": 3, "T": 7}, {"B": 7, "T": 1}]


def test_more_axes_than_sizes() -> None:
    assert size_assignments(["A", "B", "C"], [1, 3]) == [
        {"A": 1, "B": 3, "C": 1},
        {"A": 3, "B": 1, "C": 3},
    ]


def test_without_dynamic_axes_there_is_one_assignment() -> None:
    assert size_assignments([], [1, 3, 7]) == [{}]


def test_values_are_drawn_from_the_example() -> None:
    tokens = torch.tensor([[3, 8], [8, 5]])
    drawn = draw(tokens, (20, 4), torch.Generator().manual_seed(0))
    assert drawn.shape == (20, 4)
    assert set(drawn.flatten().tolist()) == {3, 5, 8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_float_example_becomes_the_same_noise_in_every_dtype(dtype: torch.dtype) -> None:
    drawn = draw(torch.zeros(2, dtype=dtype), (50,), torch.Generator().manual_seed(0))
    expected = draw(torch.zeros(2, dtype=torch.float64), (50,), torch.Generator().manual_seed(0))
    assert drawn.dtype is dtype
    torch.testing.assert_close(drawn.double(), expected, atol=1e-6, rtol=0)
    assert drawn.std() > 0.5


def test_a_constant_example_of_whole_numbers_stays_constant() -> None:
    drawn = draw(torch.full((2,), 4), (9,), torch.Generator().manual_seed(0))
    assert drawn.tolist() == [4] * 9


def test_an_example_is_cut_or_repeated_from_its_beginning() -> None:
    example = torch.arange(6).reshape(2, 3)
    assert resized(example, (3, 2)).tolist() == [[0, 1], [3, 4], [0, 1]]


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / 3


def test_a_reference_leaves_the_model_as_it_was_and_measures_rounding() -> None:
    model = Counts().train()
    reference = Reference(model)
    call = ExampleCall.of(model, torch.ones(2))
    (expected,) = reference.expected(call, reference.outputs(call), "the example")
    assert model.calls == 0
    assert model.training
    assert not reference.model.training
    assert 0 < expected.rounding < 1e-7  # a third in float32


class Reuses(nn.Module):
    """Writes every result into one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("result", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.result.copy_(x)


def test_outputs_stay_what_they_are_when_the_model_runs_again() -> None:
    model = Reuses()
    reference = Reference(model)
    calls = [ExampleCall.of(model, torch.full((3,), value)) for value in (1.0, 2.0)]
    outputs = [reference.outputs(call)[0] for call in calls]
    assert [float(output[0]) for output in outputs] == [1.0, 2.0]


class Casts(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def test_what_numpy_lacks_is_compared_through_float32() -> None:
    model = Casts(torch.bfloat16)
    reference = Reference(model)
    call = ExampleCall.of(model, torch.ones(2))
    (expected,) = reference.expected(call, reference.outputs(call), "the example")
    assert expected.values.dtype == "float32"
    assert expected.values.tolist() == [1.0, 1.0]


def test_no_finite_value_is_nothing_to_compare() -> None:
    model = Casts(torch.float32)
    reference = Reference(model)
    call = ExampleCall.of(model, torch.full((2,), float("nan")))
    with pytest.raises(ExportError, match="has no finite value on the example: nothing to compare"):
        reference.expected(call, reference.outputs(call), "the example")
