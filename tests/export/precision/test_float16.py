"""Weights in float16: the file is the model with rounded weights, and what rounding costs is said and bounded."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.export import export_onnx, verify
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.onnx_file import OnnxFile
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.precision.float16 import round_weights
from deploy_rnn.export.runtimes.faults import faults_of
from deploy_rnn.export.saving import save
from deploy_rnn.runtime import open_session


class Tagger(nn.Module):
    """A table, layers of two kinds, and a linear layer; `lengths` of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.gru = nn.GRU(4, 5, bidirectional=True)
        self.lstm = nn.LSTM(10, 4, 2)
        self.out = nn.Linear(4, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(tokens), lengths, enforce_sorted=False
        )
        output, _ = self.lstm(self.gru(packed)[0])
        padded, _ = nn.utils.rnn.pad_packed_sequence(output, total_length=tokens.size(0))
        return self.out(padded)


ARGS = (torch.randint(9, (4, 3)), torch.tensor([2, 4, 1]))


@pytest.fixture(scope="module")
def tagger() -> nn.Module:
    torch.manual_seed(0)
    model = Tagger().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def with_halves(model: nn.Module) -> nn.Module:
    """The model with its matrices in float16, said once more."""
    rounded = type(model)()
    rounded.load_state_dict(
        {
            name: weight.half().float() if weight.dim() == 2 else weight
            for name, weight in model.state_dict().items()
        }
    )
    return rounded.eval()


def constants(path: Path) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("form", ["unrolled", "scan", "native"])
def test_a_file_is_the_model_with_its_weights_rounded(
    tagger: nn.Module, form: str, tmp_path: Path
) -> None:
    options = ExportOptions(precision="float16", dynamic_shapes={})
    captured = CapturedModel.of(tagger, ARGS, None, options, dynamic_time=False)
    path = tmp_path / "m.onnx"
    save(captured.written(form, max_nodes=5000), path)
    onnx.checker.check_model(str(path), full_check=True)
    feeds = {"tokens": ARGS[0].numpy(), "lengths": ARGS[1].numpy()}
    expected = with_halves(tagger)(*ARGS).detach().numpy()
    for optimize in (False, True):
        [output] = open_session(path, optimize=optimize).run(None, feeds)
        np.testing.assert_allclose(output, expected, atol=1e-6)
    assert np.abs(output - tagger(*ARGS).detach().numpy()).max() > 1e-5
    # Biases are not rounded, and those of ONNX's own operators have two axes.
    kept = [
        tensor
        for tensor in constants(path).values()
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    ]
    assert all(tensor.name.endswith(".B") for tensor in kept)


@pytest.fixture(scope="module")
def file(tagger: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float16") / "m.onnx"
    report = export_onnx(
        tagger, ARGS, path, form="scan", sizes=(2,), precision="float16", max_error=0.01
    )
    assert report.precision == report.file.precision == "float16"
    [cost] = report.rounding
    assert 0 < cost.rms < cost.largest < 0.01
    assert cost.changed is not None
    assert f"float16 moves output: at most {cost.largest:.1e} (" in str(report)
    assert "from that of the model with its weights rounded to float16" in report.tolerance
    return path


def test_a_table_stays_in_float16(file: Path) -> None:
    """Its rows are cast, not the table: onnxruntime would keep that in float32."""
    model = onnx.load(file)
    [table] = [name for name in constants(file) if name.startswith("embed")]
    [reader] = [node for node in model.graph.node if table in node.input]
    assert reader.op_type == "Gather"
    assert constants(file)[table].data_type == TensorProto.FLOAT16


def test_what_openvino_refuses(file: Path) -> None:
    """It says "Conversion is failed for: Scan-18"."""
    for runtime in ("openvino", "openvino-static"):
        [fault] = faults_of(OnnxFile.read(file), runtime)
        assert str(fault).startswith(
            "its Scan reads no weight that is cast before it; use form='native' or"
        )


def test_one_wrong_weight_is_found(file: Path, tagger: nn.Module) -> None:
    model = onnx.load(file)
    [tensor] = [
        item for item in model.graph.initializer if item.name == "rnn0.l0f.n.weight_hh.T.float16"
    ]
    array = numpy_helper.to_array(tensor).copy()
    array[1, 2] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, file.with_name("changed.onnx"))
    # The metadata says that it is in float16.
    assert verify(file, tagger, ARGS).precision == "float16"
    with pytest.raises(VerificationError, match=r"changed\.onnx is not the model"):
        verify(file.with_name("changed.onnx"), tagger, ARGS)


def test_a_stream(tmp_path: Path) -> None:
    """The check runs it in chunks."""
    x = torch.randn(4, 2, 3)
    report = export_onnx(
        nn.RNN(3, 4), x, tmp_path / "m.onnx", form="scan", sizes=(2,), precision="float16", streaming=True
    )  # fmt: skip
    assert any("chunks" in comparison.case for comparison in report.comparisons)


def test_what_it_may_cost(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="is right, but float16 moves `output` by"):
        export_onnx(
            nn.RNN(3, 4), torch.randn(4, 2, 3), tmp_path / "m.onnx", form="scan", sizes=(2,), precision="float16",
            max_error=1e-9,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_matrices_are_rounded_in_place_and_nothing_else() -> None:
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.clone(), layer.bias.clone()
    round_weights(layer)
    assert torch.equal(layer.weight, weight.half().float())
    assert not torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, bias)


def test_a_weight_that_float16_does_not_hold() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0, 0] = -1e5
    with pytest.raises(ExportError, match=r"`weight` has a weight of magnitude 1e\+05; .* 65504"):
        round_weights(layer)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"portable": True}, "precision='float16' casts its weights, which portable=True does not"),
        ({}, r"`precision` \(='float16'\) must be 'float64', as the model's weights are"),
    ],
)
def test_what_is_not_offered(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    layer = nn.RNN(3, 4).double()
    with pytest.raises(ExportError, match=reason):
        export_onnx(
            layer, torch.randn(4, 2, 3).double(), tmp_path / "m", precision="float16", **options
        )
