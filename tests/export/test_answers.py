"""Models that a file cannot be, by chance, from call to call, or by a branch on values; messages name the line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.errors import ConversionError, DeployError, ExportError
from deploy_rnn.export import export_bundle, export_onnx, verify


class Dithered(nn.Module):
    def __init__(self, noise: float) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        if self.noise:
            x = x + self.noise * torch.randn_like(x)
        output: Tensor = self.rnn(x)[0]
        return output


class Streamed(nn.Module):
    """Keeps its state in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor
        output, self.h = self.rnn(x, self.h)
        return output


X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))

Way = Callable[[Any, Path], Any]
WAYS: dict[str, Way] = {
    "export_onnx": lambda model, folder: export_onnx(model, X, folder / "m.onnx", form="scan"),
    "streaming": lambda model, folder: export_onnx(
        model, X, folder / "m.onnx", form="scan", streaming=True
    ),
    "export_bundle": lambda model, folder: export_bundle(model, X, folder / "bundle"),
    "package": lambda model, folder: deploy_rnn.package(model, X, folder / "m.pt"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            Dithered(1e-3),
            "x = x + self.noise * torch.randn_like(x)`: the model draws random numbers here",
        ),
        (Streamed(), "the model keeps a state between its calls, and a file cannot: `h` changes"),
    ],
)
def test_no_file_is_made_of_a_model_with_two_answers(
    model: nn.Module, text: str, way: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as raised:
        WAYS[way](model, tmp_path)
    assert text in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert getattr(model, "h", None) is None


def test_a_file_is_not_verified_against_noise(tmp_path: Path) -> None:
    """The noise of the model would be taken for rounding, and let a wrong weight pass."""
    wrong = Dithered(0)
    model = Dithered(3e-3)
    with torch.no_grad():
        model.load_state_dict(wrong.state_dict())
        wrong.rnn.weight_hh_l0[3, 2] += 0.02
    export_onnx(wrong, X, tmp_path / "wrong.onnx", form="native")
    with pytest.raises(ExportError, match="the model draws random numbers here"):
        verify(tmp_path / "wrong.onnx", model, X)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("way", [*WAYS, "verify"])
def test_what_is_not_a_module_is_refused_by_name(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    call = WAYS.get(way, lambda model, _: verify(tmp_path / "right.onnx", model, X))
    right = Dithered(0).eval()
    export_onnx(right, X, tmp_path / "right.onnx", form="unrolled")
    with pytest.raises(TypeError, match=r"^`model` must be a torch.nn.Module, got str"):
        call("model.pt", folder)
    # `verify` only runs it.
    if way != "verify":
        with pytest.raises(ConversionError, match=r"^`model` is a TorchScript module"):
            call(torch.jit.script(nn.Linear(4, 8)), folder)
    assert not list(folder.iterdir())


class Scaled(nn.Module):
    """Changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x[:, 0] = 0
        output: Tensor = self.rnn(x)[0]
        return output


@pytest.mark.parametrize("way", ["export_onnx", "export_bundle", "package"])
def test_a_model_that_changes_its_input_is_exported(way: str, tmp_path: Path) -> None:
    before = X.clone()
    model = Scaled()
    WAYS[way](model, tmp_path)
    assert torch.equal(X, before)
    if way == "export_onnx":
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
        x = torch.randn(3, 7, 4)
        (output,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(output, model(x.clone()).detach().numpy(), atol=1e-5)


class Counted(nn.Module):
    """Counts its calls, and keeps its last output for whoever wants to see it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += x.size(0)
        output: Tensor = self.norm(self.rnn(x)[0].transpose(1, 2))
        return output


def test_a_counter_is_not_a_state(tmp_path: Path) -> None:
    report = export_onnx(Counted(), X, tmp_path / "m.onnx", form="scan")
    assert [spec.name for spec in report.inputs] == ["x"]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        if output.mean() > 0:
            output = output * 2
        return output


class Trims(Branches):
    def forward(self, x: Tensor) -> Tensor:
        longest = int((x[..., 0] != 9).sum(1).max())
        output: Tensor = self.rnn(x[:, :longest])[0]
        return output


@pytest.mark.parametrize(
    ("model", "line"), [(Branches(), "if output.mean() > 0:"), (Trims(), "longest")]
)
def test_the_line_that_depends_on_values_is_named(
    model: nn.Module, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DeployError) as raised:
        export_onnx(model, X, tmp_path / "m.onnx", form="scan")
    text = str(raised.value)
    assert text.startswith(f"{__file__}:")
    assert line in text.partition("`: ")[0]
    assert "\n" not in text
    assert capfd.readouterr() == ("", "")


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x.reshape(3, -1, 4))[0]
        return output


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_fails_by_itself_says_so(way: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as raised:
        WAYS[way](Fails(), tmp_path)
    text = str(raised.value)
    assert text.startswith(f"{__file__}:")
    assert (
        "x.reshape(3, -1, 4))[0]`: the model itself fails on its arguments: RuntimeError: " in text
    )
