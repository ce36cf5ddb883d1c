"""Models that squeeze: what PyTorch drops at one size and keeps at another."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.errors import DynamicAxisError, ExportError, VerificationError
from deploy_rnn.export import export_bundle, export_onnx
from deploy_rnn.serving import Engine


class Model(nn.Module):
    """A GRU between two functions of tensors."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] | None, after: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, batch_first=True)
        self.before = before or (lambda x: x)
        self.after = after or (lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.rnn(self.before(x))[0])


def agree(file: Path, model: Model, *inputs: Tensor) -> None:
    engine = Engine(file)
    for x in inputs:
        expected = model(x).detach().numpy()
        given = engine.run({"x": x.numpy()})["output"]
        assert given.shape == expected.shape
        np.testing.assert_allclose(given, expected, atol=1e-5)


def test_an_axis_of_size_1_is_squeezed_before_the_layer(tmp_path: Path) -> None:
    model, path = Model(lambda x: x.squeeze(1).transpose(1, 2), None), tmp_path / "m.onnx"
    report = export_onnx(model, (torch.randn(3, 1, 4, 9),), path, form="scan")
    assert report.inputs[0].shape == ("B", 1, 4, "T")
    agree(path, model, torch.randn(2, 1, 4, 7), torch.randn(1, 1, 4, 1))
    # One row, one channel: both have size 1, and only one of them is squeezed.
    report = export_onnx(model, (torch.randn(1, 1, 4, 9),), path, form="scan")
    assert report.inputs[0].shape == ("B", 1, 4, "T")
    agree(path, model, torch.randn(2, 1, 4, 7))


def test_an_axis_of_size_1_that_is_broadcast_is_fixed(tmp_path: Path) -> None:
    model, path = Model(lambda x: x * torch.ones(4), None), tmp_path / "m.onnx"
    report = export_onnx(model, (torch.randn(3, 9, 1),), path, form="scan")
    assert report.inputs[0].shape == ("B", "T", 1)
    agree(path, model, torch.randn(2, 7, 1))


def in_place(x: Tensor) -> Tensor:
    return x.clone().squeeze_(2)


@pytest.mark.parametrize(
    "squeeze",
    [
        lambda x: x.squeeze(2),
        lambda x: torch.squeeze(x, dim=-1),
        lambda x: x.squeeze((2,)),
        in_place,
    ],
)
def test_a_squeeze_of_a_larger_axis_does_nothing(
    squeeze: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    model, path = Model(None, squeeze), tmp_path / "m.onnx"
    report = export_onnx(model, (torch.randn(3, 9, 4),), path, form="scan")
    assert report.outputs[0].shape == ("B", "T", 6)
    assert "Squeeze" not in report.op_types
    agree(path, model, torch.randn(2, 7, 4), torch.randn(1, 1, 4))


def drop_rows(x: Tensor) -> Tensor:
    return x.squeeze(0)


def drop_all(x: Tensor) -> Tensor:
    return nn.functional.linear(x[:, -1:].squeeze(), torch.ones(1, 6), torch.ones(1))


@pytest.mark.parametrize(
    ("squeeze", "code", "advice"),
    [
        (drop_rows, "return x.squeeze(0)", "drops its axes, and axis 0 (of size 3 in the example)"),
        (
            drop_all,
            "x[:, -1:].squeeze(), torch.ones(1, 6)",
            "name the axis to drop, as in `.squeeze(-1)`",
        ),
    ],
)
def test_a_squeeze_that_drops_the_batch_of_one_row_is_named(
    squeeze: Callable[[Tensor], Tensor], code: str, advice: str, tmp_path: Path
) -> None:
    model, x = Model(None, squeeze), torch.randn(3, 9, 4)
    for export in (
        lambda: export_onnx(model, (x,), tmp_path / "m.onnx", form="scan"),
        lambda: export_bundle(model, (x,), tmp_path / "b", forms=["scan"]),
    ):
        with pytest.raises(ExportError) as refused:
            export()
        assert Path(__file__).name in str(refused.value)
        assert code in str(refused.value)
        assert advice in str(refused.value)
    # A fixed batch is never one row.
    export_onnx(model, (x,), tmp_path / "m.onnx", form="scan", dynamic_shapes={"x": {1: "T"}})
    agree(tmp_path / "m.onnx", model, torch.randn(3, 7, 4))


def test_an_error_of_the_example_itself_is_not_put_down_to_a_squeeze(tmp_path: Path) -> None:
    model = Model(None, drop_rows)
    with pytest.raises(VerificationError) as refused:
        export_onnx(
            model, (torch.randn(3, 9, 4),), tmp_path / "m.onnx", form="scan", sizes=(2, 5), atol=0
        )
    assert refused.value.report is not None
    assert "squeeze" not in str(refused.value)


def test_a_squeezed_axis_cannot_be_dynamic(tmp_path: Path) -> None:
    model = Model(lambda x: x.squeeze(1), None)
    with pytest.raises(DynamicAxisError, match=r"axis 1 of `x` cannot be dynamic.* at 1;"):
        export_onnx(
            model,
            (torch.randn(3, 1, 9, 4),),
            tmp_path / "m.onnx",
            form="scan",
            dynamic_shapes={"x": {0: "B", 1: "C"}},
        )
