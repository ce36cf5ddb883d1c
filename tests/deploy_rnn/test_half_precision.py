"""Models of which parts compute in float16 or bfloat16: every way out compares them with a tolerance of their own."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.export import export_onnx, verify
from deploy_rnn.half_precision import half_precision


class HalfBefore(nn.Module):
    """A linear layer in another dtype before a GRU in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6, dtype=dtype)
        self.rnn = nn.GRU(6, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(self.linear(x.to(self.linear.weight.dtype)).float())[0]
        return y


class HalfInside(nn.Module):
    """All weights in one dtype; float32 goes in and comes out."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True, dtype=dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x.to(self.dtype))[0].float()
        return y


class Rounded(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0].to(self.dtype)
        return y


class Autocast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.linear = nn.Linear(8, 3)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x)[0]
        with torch.autocast("cpu", dtype=self.dtype):
            y = self.linear(y)
        return y.float()


class Table(nn.Module):
    """A table in float16, which is looked up and widened."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6, dtype=torch.float16)
        self.rnn = nn.GRU(6, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.rnn(self.table(tokens).float())[0]
        return y


X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [HalfBefore, HalfInside, Rounded, Autocast])
def test_a_part_in_half_precision_is_found(kind: type[nn.Module], dtype: torch.dtype) -> None:
    model = kind(dtype).eval()
    assert half_precision(model, lambda: model(X)) == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("model", [nn.GRU(4, 8), nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 8))])
def test_a_model_without_such_parts_has_none(model: nn.Module) -> None:
    assert half_precision(model, lambda: model(X)) is None
    assert half_precision(model.double(), lambda: model(X.double())) is None


def test_a_table_that_is_only_looked_up_is_exact(tmp_path: Path) -> None:
    report = export_onnx(Table(), (torch.tensor([[1, 5, 3], [2, 4, 9]]),), tmp_path / "table.onnx")
    assert report.half_parts == ""
    assert report.tolerance.startswith("Every number may differ by 1e-05")


def weight_changed(path: Path, by: float) -> None:
    """Add to the weights of one input of the layer in a file."""
    model = onnx.load(str(path))
    tensor = next(one for one in model.graph.initializer if "weight_ih" in one.name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, 2] += by
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, str(path))


def test_an_export_with_float16_parts_says_so_and_a_fault_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = HalfBefore(torch.float16), tmp_path / "model.onnx"
    report = export_onnx(model, (X,), path, form="scan")
    assert report.half_parts == "float16 parts: 0.02"
    assert "  float16 parts: 0.02\n" in str(report)
    assert report.tolerance.startswith(
        "Parts of the model compute in float16: every number may differ by 0.02"
    )
    assert "long, T=200" in report.latency["CPUExecutionProvider"]
    weight_changed(path, 0.5)
    with pytest.raises(VerificationError, match="is not the model"):
        verify(path, model, (X,))


def test_own_limits_hold_for_parts_in_half_precision_too(tmp_path: Path) -> None:
    report = export_onnx(Autocast(torch.float16), (X,), tmp_path / "model.onnx", atol=0.1)
    assert report.half_parts == "float16 parts: as asked"
    assert report.tolerance == "Every number may differ by 0.1."


@pytest.mark.parametrize("form", ["scan", "auto"])
@pytest.mark.parametrize("kind", [HalfBefore, Autocast])
def test_what_onnxruntime_lacks_in_bfloat16_is_one_sentence(
    kind: type[nn.Module], form: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as raised:
        export_onnx(kind(torch.bfloat16), (X,), tmp_path / "model.onnx", form=form)
    assert str(raised.value) == (
        "parts of the model compute in bfloat16, and onnxruntime has no MatMul for it: let the model compute in "
        "float32, by its `.float()` and without torch.autocast."
    )
    assert not list(tmp_path.iterdir())


def test_a_bfloat16_output_of_an_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as raised:
        export_onnx(Rounded(torch.bfloat16), (X,), tmp_path / "model.onnx")
    assert str(raised.value) == (
        "what the model returns is bfloat16, which numpy lacks, and so onnxruntime in Python: let `forward` return "
        "float32."
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_packages_with_parts_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    inside = deploy_rnn.package(HalfInside(dtype), (X,), tmp_path / "inside.pt")
    name, limit = ("float16", 0.02) if dtype is torch.float16 else ("bfloat16", 0.05)
    assert inside.half_parts == f"{name} parts: {limit}"
    assert str(inside).endswith(f"; {name} parts: {limit}")
    whole = deploy_rnn.package(nn.GRU(4, 8, dtype=dtype), (X.to(dtype),), tmp_path / "whole.pt")
    assert max(whole.differences) < limit


def test_a_package_of_another_dtype_than_the_model_is_refused(tmp_path: Path) -> None:
    """TorchScript takes bfloat16 for autocast, whatever the model asks for."""

    class Raw(Autocast):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=self.dtype):
                y: Tensor = self.linear(self.rnn(x)[0])
            return y

    with pytest.raises(ExportError, match=r"is bfloat16\[3, 5, 3\], PyTorch gives float16"):
        deploy_rnn.package(Raw(torch.float16), (X,), tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_compiles(dtype: torch.dtype) -> None:
    model = HalfInside(dtype).eval()
    compiled = deploy_rnn.compile(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), model(X), atol=2e-2, rtol=0)
