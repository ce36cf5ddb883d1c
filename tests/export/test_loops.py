"""Models of `deploy_rnn.scan`, and of cells alone, as files in every form, run at other sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.export import export_bundle, export_onnx
from deploy_rnn.export.torch_onnx import AUTO, trace
from deploy_rnn.serving import Engine


class Decoder(nn.Module):
    """x (B, T, 3), memory (B, S, 4) -> outputs (B, T, 2), the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3 + 4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        def step(h: Tensor, slice: Tensor) -> Any:
            weights = (h.unsqueeze(1) * memory).sum(-1).softmax(-1)
            context = (weights.unsqueeze(-1) * memory).sum(1)
            h = self.cell(torch.cat([slice, context], -1), h)
            return h, self.out(h)

        h, outputs = deploy_rnn.scan(step, x.new_zeros(x.size(0), 4), x.transpose(0, 1))
        return outputs.transpose(0, 1), h


class Location(nn.Module):
    """x (T, B, 4), memory (B, S) -> (T, B, 4); a convolution over the places, as in Tacotron 2's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, padding=1)

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        def step(h: Tensor, slice: Tensor) -> Any:
            h = self.conv((memory * h[:, :1]).unsqueeze(1)).mean(-1) + slice
            return h, h

        return deploy_rnn.scan(step, x[0], x)


class Translator(nn.Module):
    """source (B, S, 3), target (B, T, 3) -> (B, T, 4); an encoder, and a decoder in a loop of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 4, batch_first=True)
        self.cell = nn.GRUCell(3 + 4, 4)

    def attended(self, memory: Tensor, step: Tensor, h: Tensor) -> Tensor:
        weights = (h.unsqueeze(1) * memory).sum(-1, keepdim=True).softmax(1)
        new_h: Tensor = self.cell(torch.cat([step, (weights * memory).sum(1)], -1), h)
        return new_h

    def forward(self, source: Tensor, target: Tensor) -> Any:
        memory, _ = self.encoder(source)
        h = memory[:, -1]
        outputs = []
        for step in target.unbind(1):
            h = self.attended(memory, step, h)
            outputs.append(h)
        return (torch.stack(outputs, 1),)


class Impatient(Translator):
    """Its loop may be left early."""

    def forward(self, source: Tensor, target: Tensor) -> Any:
        memory, _ = self.encoder(source)
        h = memory[:, -1]
        for number, step in enumerate(target.unbind(1)):
            if number > 100:
                break
            h = self.attended(memory, step, h)
        return (h,)


class Step(nn.Module):
    """One step of a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.cell(x, (h, c))


def assert_same(path: Path, model: nn.Module, **inputs: Tensor) -> None:
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    answer = Engine(str(path)).run(arrays)
    with torch.no_grad():
        expected = model(**inputs)
    for actual, tensor in zip(answer.values(), expected, strict=True):
        np.testing.assert_allclose(actual, tensor.numpy(), atol=1e-5)


def test_a_loop_in_form_scan(tmp_path: Path) -> None:
    model = Decoder().eval()
    path = tmp_path / "a.onnx"
    call = (torch.randn(2, 5, 3), torch.randn(2, 7, 4))
    report = export_onnx(model, call, path, form="scan")
    shapes = {spec.name: spec.shape for spec in report.inputs}
    assert shapes == {"x": ("B", "T", 3), "memory": ("B", "memory_1", 4)}
    for batch, steps, places in ((1, 1, 7), (3, 9, 2)):
        x = torch.randn(batch, steps, 3)
        assert_same(path, model, x=x, memory=torch.randn(batch, places, 4))


class Tree(nn.Module):
    """Nodes (B, T, 3), the children of each (B, T, T), and a state for each node: (B, T, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.node = nn.Linear(3 + 4, 4)

    def forward(self, nodes: Tensor, children: Tensor) -> Tensor:
        states = nodes.new_zeros(nodes.size(0), nodes.size(1), 4)
        numbers = torch.arange(nodes.size(1))
        for t in range(nodes.size(1)):
            below = (children[:, t].unsqueeze(2) * states).sum(1)
            state = torch.tanh(self.node(torch.cat([nodes[:, t], below], 1)))
            states = states + (numbers == t).view(1, -1, 1) * state.unsqueeze(1)
        return states


def test_a_state_with_something_for_each_step(tmp_path: Path) -> None:
    model = Tree().eval()
    path = tmp_path / "a.onnx"
    report = export_onnx(
        model, (torch.randn(2, 5, 3), torch.ones(2, 5, 5).tril(-1)), path, form="scan"
    )
    assert [spec.shape for spec in report.inputs] == [("B", "T", 3), ("B", "T", "T")]
    answer = Engine(str(path)).run(
        {"nodes": np.ones((3, 7, 3), np.float32), "children": np.zeros((3, 7, 7), np.float32)}
    )
    expected = model(torch.ones(3, 7, 3), torch.zeros(3, 7, 7))
    np.testing.assert_allclose(answer["output"], expected.detach().numpy(), atol=1e-5)


def test_a_convolution_in_a_loop_takes_any_batch() -> None:
    """PyTorch takes another kernel from 16 rows on, which is no limit of the model."""
    call = (torch.randn(3, 2, 4), torch.randn(2, 5))
    traced = trace(Location().eval(), call, {}, ({0: AUTO, 1: AUTO}, {0: AUTO}), opset_version=18)
    assert traced.limits.ranges == {}


def test_a_loop_next_to_a_layer_is_kept(tmp_path: Path) -> None:
    model = Translator().eval()
    path = tmp_path / "a.onnx"
    call = (torch.randn(2, 5, 3), torch.randn(2, 4, 3))
    report = export_onnx(model, call, path, form="native")
    assert [spec.shape for spec in report.inputs] == [("B", "T", 3), ("B", "T1", 3)]
    assert_same(path, model, source=torch.randn(3, 9, 3), target=torch.randn(3, 7, 3))


def test_a_loop_next_to_a_layer_is_named_if_it_is_written_out(tmp_path: Path) -> None:
    call = (torch.randn(2, 5, 3), torch.randn(2, 4, 3))
    said = r"axis 1 of `target` is fixed at 4, .*`cell` is a torch.nn.GRUCell.*PyTorch writes out the loop"
    with pytest.warns(UserWarning, match=said):
        report = export_onnx(Impatient().eval(), call, tmp_path / "a.onnx", form="scan")
    assert [spec.shape for spec in report.inputs] == [("B", "T", 3), ("B", 4, 3)]


def test_a_loop_in_form_unrolled(tmp_path: Path) -> None:
    model = Decoder().eval().double()
    path = tmp_path / "a.onnx"
    call = (torch.randn(2, 5, 3).double(), torch.randn(2, 7, 4).double())
    export_onnx(model, call, path, form="unrolled")
    assert_same(path, model, x=torch.randn(4, 5, 3).double(), memory=torch.randn(4, 7, 4).double())
    with pytest.raises(ExportError, match=r"would write 5 steps of a loop as \d+ nodes; the limit"):
        export_onnx(model, call, path, form="unrolled", max_nodes=20)
    with pytest.raises(DynamicAxisError, match=r"axis 1 .* of `x` is the time axis"):
        export_onnx(model, call, path, form="unrolled", dynamic_shapes={"x": {1: "T"}})


def test_a_bundle_of_a_loop(tmp_path: Path) -> None:
    model = Decoder().eval()
    call = (torch.randn(2, 5, 3), torch.randn(2, 7, 4))
    folder = tmp_path / "decoder"
    manifest = export_bundle(model, call, folder, forms=["scan"], buckets=[4], sizes=(3,))
    graphs = [(graph.form, graph.steps) for graph in manifest.graphs]
    assert graphs == [("scan", None), ("unrolled", 4)]
    # By the bucket, and by the loop.
    for steps in (4, 3, 6):
        assert_same(folder, model, x=torch.randn(3, steps, 3), memory=torch.randn(3, 7, 4))


def test_a_loop_does_not_stream(tmp_path: Path) -> None:
    call = (torch.randn(2, 5, 3), torch.randn(2, 7, 4))
    with pytest.raises(ExportError, match="let it take the first states as arguments and return"):
        export_onnx(Decoder(), call, tmp_path / "m.onnx", form="scan", streaming=True)


def test_one_step_of_a_cell(tmp_path: Path) -> None:
    model = Step().eval()
    path = tmp_path / "a.onnx"
    report = export_onnx(model, (torch.randn(2, 3), *torch.randn(2, 2, 4)), path, form="scan")
    assert [spec.shape[0] for spec in report.inputs] == ["B", "B", "B"]
    h, c = torch.randn(2, 5, 4)
    assert_same(path, model, x=torch.randn(5, 3), h=h, c=c)
    with pytest.raises(ExportError, match="the model has no recurrent layer; use form='scan'"):
        export_onnx(model, (torch.randn(2, 3), h[:2], c[:2]), path, form="native")
