"""What is too large for one file is refused before the model is traced, and sent to export_bundle."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from deploy_rnn.errors import ExportError
from deploy_rnn.export import export_onnx, saving
from deploy_rnn.export.bundle import export_bundle
from deploy_rnn.export.capture.captured import CapturedModel


def test_a_model_too_large_for_a_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "MOST_BYTES", 5_000)
    # Tracing takes minutes for such a model.
    monkeypatch.setattr(CapturedModel, "of", None)

    with pytest.raises(ExportError, match=r"an \.onnx file holds .* GB at most; use export_bundle"):
        export_onnx(nn.GRU(16, 16), (torch.randn(3, 2, 16),), tmp_path / "m.onnx")


def test_a_bundle_takes_a_model_too_large_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "MOST_BYTES", 5_000)

    export_bundle(nn.GRU(16, 16), (torch.randn(3, 2, 16),), tmp_path / "bundle", forms=["native"])

    assert (tmp_path / "bundle" / "weights.bin").stat().st_size > 5_000


def test_constants_too_large_for_a_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "MOST_BYTES", 100)
    tensor = ir.tensor(np.zeros(30, np.float32), name="w")
    value = ir.Value(
        name="w", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 18})

    with pytest.raises(ExportError, match="use export_bundle"):
        saving.save(ir.Model(graph, ir_version=8), tmp_path / "m.onnx")
