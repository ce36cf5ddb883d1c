"""What the README says of PyTorch, held against the PyTorch that is installed: a new release may change it."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def torch_may_warn() -> Iterator[None]:
    """PyTorch's exporter warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tagger() -> tuple[nn.Module, tuple[Any, ...]]:
    (source,) = re.findall(r"```python\n(# tagger\.py\n.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)
    model, example = names["tagger"]()
    return model, example


@pytest.mark.slow
def test_torch_onnx_export_refuses_the_tagger(tmp_path: Path) -> None:
    model, example = tagger()
    assert "`torch.onnx.export` refuses it" in README
    with pytest.raises(torch.onnx.errors.OnnxExporterError):
        torch.onnx.export(model, example, tmp_path / "tagger.onnx", dynamo=True, verbose=False)


@pytest.mark.slow
def test_torch_onnx_export_freezes_the_steps_of_an_rnn(tmp_path: Path) -> None:
    layer = nn.RNN(4, 5, num_layers=2, bidirectional=True).eval()
    shapes = ({0: Dim("T"), 1: Dim("B")},)
    path = tmp_path / "rnn.onnx"
    x = torch.randn(6, 3, 4)
    torch.onnx.export(layer, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    steps, batch, _ = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert (steps.dim_value, batch.dim_param) == (6, "B")


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("layer", [nn.RNN(3, 4), nn.GRU(3, 4), nn.LSTM(3, 4)], ids=str)
def test_torch_compile_refuses_the_layers_of_torch(layer: nn.Module) -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(layer, fullgraph=True)(torch.randn(5, 2, 3))
    assert torch._dynamo.config.allow_rnn is False
