"""`verify_bundle`: every graph is run, and is what the manifest says; every fault is found."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from deploy_rnn.bundle import Manifest, sha256
from deploy_rnn.errors import BundleError, VerificationError
from deploy_rnn.export import export_bundle, verify_bundle


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 5)
        self.rnn = nn.GRU(5, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rnn(self.embed(tokens))[0]


TOKENS = torch.randint(20, (3, 6))


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, nn.Module]:
    model = Tagger()
    export_bundle(model, TOKENS, tmp_path / "m", forms=["scan"], buckets=[4])
    return tmp_path / "m", model


def change(path: Path, **fields: Any) -> None:
    """Change the manifest, with digests that are right."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest |= fields
    manifest["sha256"] = {name: sha256(path / name) for name in manifest["sha256"]}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_of_the_model(bundle: tuple[Path, nn.Module]) -> None:
    path, model = bundle
    reports = verify_bundle(path, model, TOKENS)
    assert [report.file.name for report in reports] == ["scan.onnx", "unrolled-4.onnx"]
    assert reports[1].input("tokens").shape == ("B", 4)
    assert all(report.comparisons and not report.failures for report in reports)


def test_a_wrong_weight_is_found_in_every_graph(bundle: tuple[Path, nn.Module]) -> None:
    path, model = bundle
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(1.01)  # type: ignore[union-attr]
    with pytest.raises(
        VerificationError, match=r"^2 of the 2 graphs of .* are not the model"
    ) as raised:
        verify_bundle(path, model, TOKENS)
    assert "scan.onnx is not the model" in str(raised.value)
    assert "unrolled-4.onnx is not the model" in str(raised.value)
    assert len(raised.value.reports) == 2
    assert raised.value.report is raised.value.reports[0]


def test_one_graph_of_another_model(bundle: tuple[Path, nn.Module]) -> None:
    path, model = bundle
    graph = onnx.load(path / "unrolled-4.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 0.1, weight.name))
    onnx.save(graph, path / "unrolled-4.onnx")
    change(path)
    with pytest.raises(VerificationError, match=r"^1 of the 2 graphs") as raised:
        verify_bundle(path, model, TOKENS)
    assert "scan.onnx" not in str(raised.value)
    assert [report.file.name for report in raised.value.reports] == ["scan.onnx", "unrolled-4.onnx"]


def test_a_graph_that_is_not_what_the_manifest_says(bundle: tuple[Path, nn.Module]) -> None:
    path, model = bundle
    manifest = Manifest.read(path).to_dict()
    (tokens,) = manifest["inputs"]
    change(path, inputs=[tokens | {"name": "words"}])
    message = r"scan.onnx has `tokens: int64 \[B, T\]`, where the manifest says `words: int64 \[B, T\]`\. unrolled"
    with pytest.raises(VerificationError, match=message):
        verify_bundle(path, model, TOKENS)
    change(path, inputs=[tokens], outputs=[])
    with pytest.raises(
        VerificationError, match="has 1 inputs and 1 outputs, where the manifest says 1 and 0"
    ):
        verify_bundle(path, model, TOKENS)


def test_files_that_changed(bundle: tuple[Path, nn.Module]) -> None:
    path, model = bundle
    (path / "weights.bin").write_bytes((path / "weights.bin").read_bytes() + b" ")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        verify_bundle(path, model, TOKENS)
    (path / "weights.bin").unlink()
    with pytest.raises(BundleError, match=r"lacks 'weights.bin'"):
        verify_bundle(path, model, TOKENS)


def test_lengths_and_streams(tmp_path: Path) -> None:
    layer = nn.LSTM(3, 4)
    x = torch.randn(6, 3, 3)
    lengths = {"lengths": torch.tensor([6, 2, 5])}
    export_bundle(layer, x, tmp_path / "rows", kwargs=lengths, forms=["native"], buckets=[4])
    assert len(verify_bundle(tmp_path / "rows", layer, x, kwargs=lengths)) == 2
    export_bundle(layer, x, tmp_path / "chunks", streaming=True, forms=["scan"])
    (report,) = verify_bundle(tmp_path / "chunks", layer, x)
    assert report.states
