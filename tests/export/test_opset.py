"""Files of older and newer opsets: the operators are those of the opset, and the numbers PyTorch's."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.errors import ExportError
from deploy_rnn.export import export_onnx
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.forms.node_count import MAX_NODES
from deploy_rnn.export.opset import lowest_ir_version
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.saving import save


class Tagger(nn.Module):
    """Around its layer are operators that changed after opset 13: LayerNormalization, and reductions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.rnn = nn.GRU(4, 6, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, h = self.rnn(self.norm(x))
        return y.mean(1), y.amax(-1), y.sum(1), torch.logsumexp(y, 1), y.reshape(y.size(0), -1), h


EXAMPLE = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


@cache
def model() -> Tagger:
    torch.manual_seed(0)
    return Tagger().eval()


@cache
def capture(opset_version: int) -> CapturedModel:
    options = ExportOptions(opset_version=opset_version)
    return CapturedModel.of(model(), (EXAMPLE,), None, options, dynamic_time=True)


@pytest.mark.parametrize(
    ("opset", "form"),
    [(13, "scan"), (13, "native"), (16, "scan"), (17, "native"), (21, "scan"), (25, "native")],
)
def test_the_numbers_are_those_of_the_model(opset: int, form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save(capture(opset).written(form, max_nodes=MAX_NODES), path)

    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", opset)]
    assert file.ir_version == lowest_ir_version(opset)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = EXAMPLE[:2, :3]
    outputs = session.run(None, {"x": x.numpy()})
    with torch.no_grad():
        expected = model()(x)
    for output, tensor in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, tensor.numpy(), atol=1e-5)


def test_an_export_in_an_old_opset_is_verified(tmp_path: Path) -> None:
    args = (torch.randn(4, 2, 3), torch.randn(2, 2, 4))
    report = export_onnx(
        nn.GRU(3, 4, bidirectional=True),
        args,
        tmp_path / "m.onnx",
        form="unrolled",
        opset_version=13,
        ir_version=9,
    )

    assert report.file.opset == 13
    assert onnx.load(tmp_path / "m.onnx").ir_version == 9
    assert not report.failures


class Triangle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return torch.tril(y @ y.transpose(1, 2))


def test_an_operator_that_an_opset_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_onnx(
            Triangle(), (torch.randn(2, 3, 4),), tmp_path / "m.onnx", form="scan", opset_version=13
        )

    assert str(caught.value) == (
        "the model needs Trilu, which ONNX's opset 13 lacks, or has in a lesser version; use `opset_version=14` or "
        "above."
    )


@pytest.mark.parametrize("version", [7, 99, "8"])
def test_an_ir_version_must_be_one_that_the_opset_allows(version: int) -> None:
    with pytest.raises(
        ExportError, match=r"must be a whole number from 8, the lowest for opset 18"
    ):
        ExportOptions(ir_version=version)
