"""`Recurrent` with a cell that is defined outside the package, and the errors of an incomplete class."""

import pickle
import warnings

import pytest
import torch
from torch import Tensor

from deploy_rnn import GRU, LSTM, RNN, Cell, Recurrent, convert


def sums(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """h[t] = projected[t] + u * h[t-1]"""
    return [projected + weights[0] * states[0]]


class Sums(Recurrent):
    cell = Cell(sums, diagonal=True)


class Gated(GRU):
    """A GRU by another name."""


def test_a_vector_is_a_recurrent_weight() -> None:
    layer = Sums(3, 4, 2, bidirectional=True)
    shapes = {name: tuple(weight.shape) for name, weight in layer.named_parameters()}
    assert shapes["weight_ih_l1_reverse"] == (4, 8)
    assert {shapes[name] for name in shapes if "weight_hh" in name} == {(4,)}
    assert repr(layer) == "Sums(3, 4, num_layers=2, bidirectional=True)"
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), layer(x))
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            weight.fill_(2.0 if "weight_hh" in name and "reverse" in name else 1.0)
    output, h_n = layer(torch.ones(2, 3, 3))
    # Layer 0 adds 3 + 2 at each step: 5, 10, and backwards 5, 15; layer 1 adds 4*(5 + 15) + 2 = 82, then 62.
    assert output[:, 1, [0, 4]].tolist() == [[82.0, 206.0], [144.0, 62.0]]
    assert h_n[:, 2, 0].tolist() == [10.0, 15.0, 144.0, 206.0]


def test_errors_have_the_name_of_the_class() -> None:
    with pytest.raises(ValueError, match="Sums: Expected input to be 2D or 3D, got 4D instead"):
        Sums(3, 4)(torch.zeros(1, 1, 1, 3))
    with pytest.raises(ValueError, match="GRU: Expected input to be 2D or 3D, got 4D instead"):
        Gated(3, 4)(torch.zeros(1, 1, 1, 3))


def test_a_class_without_a_cell_is_refused() -> None:
    class Nothing(Recurrent):
        pass

    with pytest.raises(
        TypeError, match=r"Nothing has no cell; set `cell = deploy_rnn.Cell\(step\)` in the class"
    ):
        Nothing(3, 4)


@pytest.mark.parametrize("cls", [torch.nn.GRU, GRU, Sums])
def test_a_cell_without_a_projection_refuses_one(cls: type[torch.nn.Module]) -> None:
    with pytest.raises(
        ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"
    ):
        cls(3, 4, proj_size=2)


@pytest.mark.parametrize("cls", [RNN, GRU, LSTM, Sums])
def test_a_warning_names_the_line_that_made_the_layer(cls: type[torch.nn.Module]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cls(3, 4, dropout=0.5)
    assert [warning.filename for warning in caught] == [__file__]


def test_convert_keeps_a_layer_with_another_cell() -> None:
    model = torch.nn.Sequential(Sums(3, 4))
    converted = convert(model)
    assert type(converted[0]) is Sums
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x), model(x))
