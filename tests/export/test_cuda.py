"""The CUDA provider of onnxruntime against torch.nn."""

import itertools
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn.errors import ProviderError, VerificationError
from deploy_rnn.export import export_bundle, export_onnx, verify
from deploy_rnn.export.forms import FORMS
from deploy_rnn.runtime import CPU, CUDA

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("onnxruntime_cuda")]


@pytest.mark.parametrize("with_h0", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_configuration_is_right_and_runs_on_the_gpu(
    bidirectional: bool, num_layers: int, nonlinearity: str, with_h0: bool, tmp_path: Path
) -> None:
    for (steps, hidden), dtype in itertools.product(
        [(1, 8), (7, 63), (33, 1)], [torch.float32, torch.float64]
    ):
        layer = nn.RNN(
            3, hidden, num_layers, nonlinearity, bidirectional=bidirectional, dtype=dtype
        )
        x = torch.randn(steps, 2, 3, dtype=dtype)
        h0 = torch.randn(num_layers * (2 if bidirectional else 1), 2, hidden, dtype=dtype)
        report = export_onnx(
            layer, (x, h0) if with_h0 else (x,), tmp_path / "rnn.onnx", form="unrolled"
        )
        assert report.providers[CUDA].startswith("checked; it ran ")
        assert {comparison.provider for comparison in report.comparisons} == {CPU, CUDA}


def test_a_model_on_the_gpu(tmp_path: Path) -> None:
    layer = nn.RNN(3, 8, 2, bidirectional=True, device="cuda")
    report = export_onnx(
        layer, torch.randn(6, 2, 3, device="cuda"), tmp_path / "rnn.onnx", form="unrolled"
    )
    assert CUDA in report.worst
    assert layer.weight_ih_l0.is_cuda


def test_a_fault_is_found(tmp_path: Path) -> None:
    layer = nn.RNN(3, 8, 2, bidirectional=True)
    x = torch.randn(6, 2, 3)
    export_onnx(layer, x, tmp_path / "rnn.onnx", form="unrolled")
    model = onnx.load(tmp_path / "rnn.onnx")
    next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Softsign"
    onnx.save(model, tmp_path / "rnn.onnx")
    with pytest.raises(VerificationError) as raised:
        verify(tmp_path / "rnn.onnx", layer, x)
    assert raised.value.report is not None
    assert CUDA in {comparison.provider for comparison in raised.value.report.failures}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(
    ("cls", "options"), [(nn.GRU, {}), (nn.LSTM, {}), (nn.LSTM, {"proj_size": 4})]
)
def test_gated_layers_are_right_and_run_on_the_gpu(
    cls: type[nn.RNNBase], options: dict[str, int], tmp_path: Path
) -> None:
    layer = cls(3, 8, 2, bidirectional=True, **options)
    report = export_onnx(layer, torch.randn(7, 2, 3), tmp_path / "layer.onnx", form="unrolled")
    assert report.providers[CUDA].startswith("checked; it ran ")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("way", ["lengths", "states", "streaming"])
def test_every_form_is_right_on_the_gpu(
    way: str, family: type[nn.RNNBase], form: str, tmp_path: Path
) -> None:
    layer = family(3, 8, 2, bidirectional=way != "streaming")
    state = torch.randn(2 if way == "streaming" else 4, 2, 8)
    options: dict[str, Any] = {
        "lengths": {"kwargs": {"lengths": torch.tensor([4, 7])}},
        "states": {"kwargs": {"hx": (state, state.sin()) if family is nn.LSTM else state}},
        "streaming": {"streaming": True},
    }[way]
    report = export_onnx(layer, torch.randn(7, 2, 3), tmp_path / "layer.onnx", form=form, **options)
    assert report.providers[CUDA].startswith("checked; it ran ")
    assert {comparison.provider for comparison in report.comparisons} == {CPU, CUDA}


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.rnn = nn.LSTM(4, 8, 2, batch_first=True, bidirectional=True)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> Any:
        packed = pack_padded_sequence(
            self.embed(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        output, (h_n, _) = self.rnn(packed)
        return pad_packed_sequence(output, batch_first=True, total_length=tokens.size(1))[0], h_n


def test_a_bundle_of_a_model_that_packs(tmp_path: Path) -> None:
    args = (torch.randint(9, (3, 6)), torch.tensor([2, 6, 4]))
    manifest = export_bundle(Packing(), args, tmp_path / "bundle", buckets=[4, 6])
    assert len(manifest.graphs) == 4
    for report in json.loads((tmp_path / "bundle" / "report.json").read_text()):
        assert report["providers"][CUDA].startswith("checked; it ran ")


@pytest.mark.parametrize("form", FORMS)
def test_cuda_can_be_required(form: str, tmp_path: Path) -> None:
    layer = nn.LSTM(3, 8, 2, bidirectional=True)
    report = export_onnx(
        layer, torch.randn(7, 2, 3), tmp_path / "a.onnx", form=form, require_provider=CUDA
    )
    assert sum(report.placement[CUDA].nodes[CUDA].values()) > 0
    assert report.latency[CUDA]["example"] > 0


def test_a_node_that_cuda_lacks_is_named_if_cuda_is_required(tmp_path: Path) -> None:
    """onnxruntime has no Det for CUDA: the CPU runs it, with copies there and back."""

    class Determined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.rnn(x)[0]
            return output * torch.linalg.det(output @ output.mT + torch.eye(2))[:, None, None]

    model = Determined()
    x = torch.randn(5, 2, 3)
    path = tmp_path / "a.onnx"
    report = export_onnx(model, x, path, dynamic_shapes={}, form="unrolled")
    assert report.placement[CUDA].nodes[CPU]["Det"] == 1
    assert report.placement[CUDA].copies > 0
    with pytest.raises(
        ProviderError, match=r"it left \d+ of \d+ nodes to another provider: .*\(Det, CPUExecution"
    ):
        verify(path, model, x, require_provider=CUDA)
