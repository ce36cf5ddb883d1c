"""Models without a recurrent layer: every axis that they leave open stays so; a loop of Python is kept, or named."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.export import export_bundle, export_onnx
from deploy_rnn.export.capture.tied_axes import fixed_axes
from deploy_rnn.serving import Engine

X = torch.randn(2, 5, 3)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(0), 4)
        for step in x.unbind(1):
            h = self.mix(torch.cat([step, h], -1)).tanh()
        return h


class Left(Loop):
    """A loop that is left early."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(0), 4)
        for step in x.unbind(1):
            if step.size(0) > 100:
                break
            h = self.mix(torch.cat([step, h], -1)).tanh()
        return h


def test_open_axes_stay_open(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv1d(4, 2, 1)).eval()
    path = tmp_path / "model.onnx"
    with pytest.warns(UserWarning, match=r"axis 2 of `input`, input_2, .* 3 or more only"):
        report = export_onnx(model, (torch.randn(2, 3, 9),), path, form="scan")
    assert report.inputs[0].shape == ("input_0", 3, "input_2")
    x = torch.randn(4, 3, 14)
    answer = Engine(path).run({"input": x.numpy()})["output"]
    torch.testing.assert_close(torch.from_numpy(answer), model(x), rtol=1e-5, atol=1e-5)


def test_a_loop_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = export_onnx(Loop().eval(), (X,), path)
    assert report.form == "scan"
    assert report.inputs[0].shape == ("B", "T", 3)
    with pytest.raises(ExportError, match="form='native' writes ONNX's RNN, GRU and LSTM"):
        export_onnx(Loop().eval(), (X,), path, form="native")


@pytest.mark.parametrize("form", ["scan", "native", "auto"])
def test_a_loop_is_refused_with_its_line(form: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as raised:
        export_onnx(Left(), (X,), tmp_path / "model.onnx", form=form)
    message = str(raised.value)
    assert message.startswith(f"Left has no recurrent layer: {__file__}:")
    assert "`for step in x.unbind(1):` is a loop over axis 1 of `x`: PyTorch writes out" in message
    assert "deploy_rnn.scan" in message
    assert "deploy_rnn.Recurrent" in message
    assert message.endswith("Or use form='unrolled', for the steps of the example.")


def test_the_search_for_a_loop_leaves_batch_statistics_alone(tmp_path: Path) -> None:
    """In training mode, a call changes them: the user's model would become another one, and the file with it."""
    model = nn.Sequential(Left(), nn.BatchNorm1d(4))
    statistics = {name: value.clone() for name, value in model[1].named_buffers()}
    with pytest.raises(ExportError, match="is a loop over axis 1"):
        export_onnx(model, (X,), tmp_path / "model.onnx")
    assert model.training
    torch.testing.assert_close(dict(model[1].named_buffers()), statistics, rtol=0, atol=0)


def test_a_loop_in_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is a loop over axis 1 of `x`"):
        export_bundle(Left(), (X,), tmp_path / "bundle")


def test_a_loop_written_out(tmp_path: Path) -> None:
    model = Loop().eval()
    path = tmp_path / "model.onnx"
    with (
        pytest.warns(
            UserWarning, match="is a loop over axis 1 of `x`: PyTorch writes out the loop"
        ),
        pytest.warns(UserWarning, match="axis 1 of `x` is fixed at 5, the size in the example"),
    ):
        report = export_onnx(model, (X,), path, form="unrolled")
    assert report.inputs[0].shape == ("x_0", 5, 3)


def test_a_loop_over_an_axis_that_is_asked_to_be_dynamic(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    dynamic = {"x": {1: "steps"}}
    report = export_onnx(Loop(), (X,), path, form="scan", dynamic_shapes=dynamic)
    assert report.inputs[0].shape == (2, "steps", 3)
    with (
        pytest.warns(UserWarning, match="is a loop over axis 1 of `x`"),
        pytest.raises(DynamicAxisError, match="axis 1 of `x` cannot be dynamic"),
    ):
        export_onnx(Left(), (X,), path, form="scan", dynamic_shapes=dynamic)


def test_an_axis_that_only_the_graph_fixes() -> None:
    """Of a model with an axis for its weights, one that it takes in every size, and one with a name."""
    model = Loop()
    assert fixed_axes(model, ExampleCall.of(model, (X,)), [{0: "x_0"}]) == [(0, 1)]


class Stepped(nn.Module):
    """A layer that is called for one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for t in range(x.size(1)):
            y, h = self.rnn(x[:, t : t + 1], h)
        return y


def test_a_loop_around_a_layer_is_kept(tmp_path: Path) -> None:
    model, path = Stepped().eval(), tmp_path / "model.onnx"
    with pytest.warns(UserWarning, match=r"axis 1 of `x`, T, can have a size of 2 or more only"):
        report = export_onnx(model, (X,), path, form="native")
    assert report.inputs[0].shape == ("B", "T", 3)
    x = torch.randn(3, 9, 3)
    answer = Engine(path).run({"x": x.numpy()})["output"]
    torch.testing.assert_close(torch.from_numpy(answer), model(x), rtol=1e-5, atol=1e-5)
