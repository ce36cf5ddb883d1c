"""Inputs that must agree in size though no graph says so, and inputs whose values need an order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import DynamicAxisError
from deploy_rnn.export import export_bundle, export_onnx
from deploy_rnn.export.capture.tied_axes import with_tied_axes
from deploy_rnn.runtime import open_session


class Masked(nn.Module):
    """The lengths are those of a mask (B, T), true and then false."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 7, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        packed = pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)
        output, (h_n, _) = self.rnn(packed)
        return pad_packed_sequence(output, batch_first=True, total_length=x.size(1))[0], h_n


def mask(steps: int, *lengths: int) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths).unsqueeze(1)


@pytest.mark.parametrize("form", ["scan", "native"])
def test_the_steps_of_a_mask_are_those_of_the_input(form: str, tmp_path: Path) -> None:
    model, path = Masked(), tmp_path / "masked.onnx"
    report = export_onnx(model, (torch.randn(3, 6, 5), mask(6, 3, 6, 2)), path, form=form)
    assert [spec.shape for spec in report.inputs] == [("B", "T", 5), ("B", "T")]
    assert any(each.case.startswith("example stretched, ") for each in report.comparisons)
    x, rows = torch.randn(2, 9, 5), mask(9, 4, 9)
    outputs = open_session(path).run(None, {"x": x.numpy(), "mask": rows.numpy()})
    for array, tensor in zip(outputs, model(x, rows), strict=True):
        np.testing.assert_allclose(array, tensor.detach(), atol=1e-6)


class Summed(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        total: Tensor = inputs[0] + inputs[1]
        return total + inputs[2].sum()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ([{0: "B"}, {}, {}], [{0: "B"}, {0: "B"}, {}]),  # the third may be of any size
        ([{0: "B", 1: "T"}, {0: "B"}, {}], [{0: "B", 1: "T"}, {0: "B", 1: "T"}, {}]),
        ([{}, {}, {0: "N"}], [{}, {}, {0: "N"}]),
    ],
)
def test_what_has_to_grow_along(named: list[Any], expected: list[Any]) -> None:
    model = Summed()
    call = ExampleCall.of(model, (torch.randn(3, 4), torch.randn(3, 4), torch.randn(3)))
    assert with_tied_axes(model, call, named) == expected
    assert named[1] in ({}, {0: "B"})


class Forecast(nn.Module):
    """What is known in advance (T + 2, 3) goes two steps further than what was measured (T)."""

    def forward(self, measured: Tensor, known: Tensor) -> Tensor:
        steps = measured.size(0)
        past: Tensor = measured.unsqueeze(1) + known[:steps]
        return torch.cat([past, (past[-1] + known[steps + 1]).unsqueeze(0)])


def test_an_axis_of_another_size_that_has_to_grow_along() -> None:
    call = ExampleCall.of(Forecast(), (torch.randn(4), torch.randn(6, 3)))
    assert with_tied_axes(Forecast(), call, [{0: "T"}, {}]) == [{0: "T"}, {0: "known_0"}]


def test_an_axis_of_one_size_is_not_tied_but_fixed(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(5, 7, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling() and x.size(1) != 4:
                raise ValueError("four steps, please")
            output: Tensor = self.rnn(x)[0]
            return output

    path = tmp_path / "m.onnx"
    reason = (
        r"T: fixed at the size in the example, since .* T other than 4: .* four steps, please\."
    )
    with pytest.warns(UserWarning, match=reason):
        report = export_onnx(Fixed(), torch.randn(2, 4, 5), path, form="scan")
    assert report.inputs[0].shape == ("B", 4, 5)
    with pytest.warns(UserWarning, match=reason):
        manifest = export_bundle(Fixed(), torch.randn(2, 4, 5), tmp_path / "bundle")
    assert manifest.inputs[0].shape == ("B", 4, 5)
    with pytest.raises(DynamicAxisError, match=r"axis steps cannot be dynamic: .* Leave it out of"):
        export_onnx(
            Fixed(), torch.randn(2, 4, 5), path, form="scan", dynamic_shapes={"x": {1: "steps"}}
        )
