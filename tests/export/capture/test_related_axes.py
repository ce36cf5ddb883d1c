"""Inputs of which no axis reaches a recurrent layer by itself, exported without `dynamic_shapes`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import VerificationError
from deploy_rnn.export import export_onnx
from deploy_rnn.export.capture.capture import Tracer
from deploy_rnn.serving import Engine


class Extra(nn.Module):
    """A GRU, and inputs that it does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor, ids: Tensor, weights: Tensor, table: Tensor) -> Any:
        output = self.rnn(x)[0] * weights.sum()  # (B, T, 6)
        distances = output @ table.t()  # (B, T, K)
        return distances, ids


def test_inputs_that_are_unused_or_passed_through_have_the_axes_of_the_others(
    tmp_path: Path,
) -> None:
    model, path = Extra(), tmp_path / "m.onnx"
    args = (
        torch.randn(3, 5, 4),
        torch.ones(3, 5),
        torch.tensor([7, 1, 2]),
        torch.randn(3),
        torch.randn(3, 6),
    )
    report = export_onnx(model, args, path, form="scan")
    shapes = {spec.name: spec.shape for spec in report.inputs}
    assert shapes == {
        "x": ("B", "T", 4),
        "mask": ("B", "T"),
        "ids": ("B",),
        # Of any size: the model adds its elements.
        "weights": ("weights_0",),
        # Three entries, as there are three rows by chance.
        "table": ("table_0", 6),
    }
    x, weights, ids = torch.randn(2, 7, 4), torch.randn(5), torch.tensor([4, 5])
    other = (x, torch.ones(2, 7), ids, weights, torch.randn(9, 6))
    feeds = {name: tensor.numpy() for name, tensor in zip(shapes, other, strict=True)}
    outputs = Engine(path).run(feeds)
    for output, expected in zip(outputs.values(), model(*other), strict=True):
        np.testing.assert_allclose(output, expected.detach(), atol=1e-5)
    report = export_onnx(model, args, path, form="unrolled")
    shapes = {spec.name: spec.shape for spec in report.inputs}
    assert shapes["x"] == ("B", 5, 4)
    assert shapes["mask"] == ("B", 5)


class Vocoder(nn.Module):
    """Four samples for each frame; the layer takes one of the two as its steps."""

    def __init__(self, *, steps: str) -> None:
        super().__init__()
        self.steps = steps
        self.rnn = nn.GRU(5 if steps == "samples" else 8, 6, batch_first=True)

    def forward(self, samples: Tensor, frames: Tensor) -> Tensor:
        if self.steps == "samples":
            frames = frames.repeat_interleave(4, 1)
            inputs = torch.cat([samples.unsqueeze(-1), frames], -1)
        else:
            inputs = torch.cat([samples.unflatten(1, (frames.size(1), 4)), frames], -1)
        output: Tensor = self.rnn(inputs)[0]
        return output


def test_a_length_and_its_multiple_are_both_dynamic() -> None:
    args = (torch.randn(3, 24), torch.randn(3, 6, 4))
    for steps in ("samples", "frames"):
        model = Vocoder(steps=steps)
        tracer = Tracer(model, ExampleCall.of(model, args), opset_version=18)
        axes = tracer.stack_axes
        assert axes == [{0: "B", 1: "T"}, {0: "B", 1: "T"}]
        graph = tracer.capture(axes).model.graph
        shapes = [[str(size) for size in value.shape or ()] for value in graph.inputs]
        assert shapes == [["B", "4*T"], ["B", "T", "4"]]


class EverySecondStep(nn.Module):
    """The layer's steps are computed from an axis of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        output: Tensor = self.rnn(x[:, ::2])[0]
        return output * mask[:, ::2, None]


def test_an_axis_that_steps_are_computed_from_is_dynamic(tmp_path: Path) -> None:
    model, path = EverySecondStep(), tmp_path / "m.onnx"
    report = export_onnx(model, (torch.randn(3, 6, 4), torch.ones(3, 6)), path, form="scan")
    assert [spec.shape for spec in report.inputs] == [("B", "T", 4), ("B", "T")]
    for steps in (1, 8, 9):
        x, mask = torch.randn(2, steps, 4), torch.randn(2, steps)
        output = Engine(path).run({"x": x.numpy(), "mask": mask.numpy()})["output"]
        np.testing.assert_allclose(output, model(x, mask).detach(), atol=1e-5)


class Columns(nn.Module):
    """The mean of each column; torch.onnx writes the height of the example for the window of this operator."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 3, batch_first=True)

    def forward(self, picture: Tensor) -> Tensor:
        columns = picture.permute(0, 3, 1, 2)  # (B, T, channels, height)
        means = torch.ops.aten.adaptive_avg_pool2d(columns, (columns.size(2), 1))
        output: Tensor = self.rnn(means.squeeze(3))[0]
        return output


def test_a_further_axis_that_the_file_would_get_wrong_is_fixed(tmp_path: Path) -> None:
    said = r"^axis 2 of `picture`: fixed at the size in the example\. With other sizes, m\.onnx "
    with pytest.warns(UserWarning, match=said):
        report = export_onnx(
            Columns(), (torch.randn(2, 2, 4, 6),), tmp_path / "m.onnx", form="scan"
        )
    assert report.inputs[0].shape == ("B", 2, 4, "T")


class Faded(nn.Module):
    """Adds the weighted rows of a memory; torch.export makes the points of `linspace` a number."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 3, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        weights = torch.linspace(0, 1, memory.size(1))
        output: Tensor = self.rnn(x)[0]
        return output + (memory * weights[:, None]).sum(1, keepdim=True)


def test_a_further_axis_that_pytorch_fixes_is_named(tmp_path: Path) -> None:
    said = r"^axis 1 of `memory` is fixed at 5, .* PyTorch traces the model for this size only\."
    with pytest.warns(UserWarning, match=said):
        report = export_onnx(
            Faded(), (torch.randn(2, 4, 2), torch.randn(2, 5, 3)), tmp_path / "m.onnx", form="scan"
        )
    assert report.inputs[1].shape == ("B", 5, 3)


class AnyChannels(nn.Module):
    """Takes any number of channels, since it pools them, too: torch.onnx does not know that two are left."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 3, batch_first=True)

    def forward(self, picture: Tensor) -> Tensor:
        columns = picture.permute(0, 3, 1, 2)  # (B, T, channels, height)
        means = nn.functional.adaptive_avg_pool2d(columns, (2, 1))
        output: Tensor = self.rnn(means.squeeze(3))[0]
        return output


def test_the_inputs_of_a_layer_are_a_number(tmp_path: Path) -> None:
    model, path = AnyChannels(), tmp_path / "m.onnx"
    report = export_onnx(model, (torch.randn(2, 3, 4, 6),), path, form="scan")
    assert report.inputs[0].shape == ("B", "picture_1", "picture_2", "T")
    picture = torch.randn(1, 5, 2, 3)
    output = Engine(path).run({"picture": picture.numpy()})["output"]
    np.testing.assert_allclose(output, model(picture).detach(), atol=1e-5)


def test_one_that_is_asked_for_is_an_error(tmp_path: Path) -> None:
    axes = {"picture": {0: "B", 2: "height", 3: "T"}}
    picture = torch.randn(2, 2, 4, 6)
    with pytest.raises(VerificationError, match="height="):
        export_onnx(Columns(), (picture,), tmp_path / "m.onnx", form="scan", dynamic_shapes=axes)
