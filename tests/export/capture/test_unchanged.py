"""A model whose `forward` changes it: neither the model, nor its file, nor a later trace sees what a trace left."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.capture.unchanged import unchanged
from deploy_rnn.export.options import ExportOptions


class Counting(nn.Module):
    """Counts its calls from 9 in a buffer, in a number and in a dict, and cuts what is larger, which nothing is.

    A mask must have as many steps as the input.
    """

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.register_buffer("calls", torch.tensor([9]))
        self.cache: dict[str, Any] = {}
        self.last = 0

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        output = output.masked_fill((9 * output).long() > self.calls, 0.0)
        output = output.clamp(max=1.0 + len(self.cache) + self.last)
        if not torch.compiler.is_compiling():
            self.calls += 1
            self.cache[f"x {len(self.cache)}"] = x
            self.last += 1
        return output * mask.unsqueeze(2)


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 5, 3), torch.ones(2, 5)


def test_what_a_forward_changes_is_as_before() -> None:
    model = Counting()
    cache = model.cache
    with unchanged(model):
        model(*example())
        model(*example())
        assert model.last == 2
    assert model.calls.item() == 9
    assert model.last == 0
    assert model.cache is cache
    assert not cache
    assert [*model.state_dict()] == [*Counting().state_dict()]


def test_it_is_as_before_after_an_error_too() -> None:
    model = Counting()
    x, _ = example()
    with pytest.raises(AttributeError), unchanged(model):
        model(x, None)
    assert (model.calls.item(), model.last, model.cache) == (9, 0, {})


@pytest.mark.parametrize("dynamic_time", [False, True])
def test_a_file_starts_from_a_model_that_was_never_called(dynamic_time: bool) -> None:
    """Its axes are found by a trace and by calls, which leave nothing for the trace that becomes the file."""
    model = Counting()
    captured = CapturedModel.of(model, example(), None, ExportOptions(), dynamic_time=dynamic_time)
    axes = {0: "B", 1: "T"} if dynamic_time else {0: "B"}
    for value in captured.onnx.graph.inputs:
        assert value.shape is not None
        assert {
            axis: str(size) for axis, size in enumerate(value.shape) if not isinstance(size, int)
        } == axes
    calls = captured.onnx.graph.initializers["calls"].const_value
    assert calls is not None
    assert calls.numpy().tolist() == [9]
    assert (model.calls.item(), model.last, model.cache) == (9, 0, {})
