"""`portable=True`: what is in such a file, and what is not."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from deploy_rnn.errors import DynamicAxisError
from deploy_rnn.export import export_onnx
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.options import ExportOptions

X = torch.randn(3, 2, 4)


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            nodes += all_nodes(attribute.g)
    return nodes


def all_constants(graph: onnx.GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer}


def optimized_operators(path: Path, to: Path) -> set[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(to)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(to).graph.node}


@pytest.mark.parametrize("form", ["unrolled", "scan", "native"])
def test_a_portable_file_is_the_model(form: str, tmp_path: Path) -> None:
    layer = nn.LSTM(4, 5, bidirectional=True)
    kwargs = {"lengths": torch.tensor([3, 1])}
    path = tmp_path / "lstm.onnx"
    report = export_onnx(layer, X, path, kwargs=kwargs, form=form, portable=True, sizes=(2,))
    steps = 3 if form == "unrolled" else "T"
    assert report.input("input").shape == (steps, 2, 4)
    graph = onnx.load(path).graph
    constants = all_constants(graph)
    gemms = [node for node in all_nodes(graph) if node.op_type == "Gemm"]
    assert all(node.input[2] in constants for node in gemms)
    if form == "unrolled":
        assert not {"Shape", "Range", "ConstantOfShape"} & report.op_types.keys()
        assert (
            report.op_types["MatMul"] == 2 * 2 * 2
        )  # two groups of gates, two directions, two steps
        # onnxruntime joins each pair to a Gemm again, and that with its activation.
        ran = optimized_operators(path, tmp_path / "optimized.onnx")
        assert "MatMul" not in ran
        assert "FusedGemm" in ran
    if form == "native":
        assert not report.file.recurrent.sequence_lens


class Looks(nn.Module):
    """Looks at a memory (B, S, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0] @ memory.transpose(1, 2) @ memory


def test_only_the_steps_of_a_portable_file_are_open(tmp_path: Path) -> None:
    args = (X, torch.randn(3, 6, 5))
    report = export_onnx(Looks(), args, tmp_path / "m.onnx", form="scan", portable=True)
    assert [spec.shape for spec in report.inputs] == [(3, "T", 4), (3, 6, 5)]


class Scores(nn.Module):
    """Of what a layer returns, the output or the final state is used."""

    def __init__(self, layer: nn.RNNBase, used: int) -> None:
        super().__init__()
        self.layer = layer
        self.used = used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        used = self.layer(x)[self.used]
        return used[0] if isinstance(used, tuple) else used


@pytest.mark.parametrize(
    ("layer", "used", "op_type"), [(nn.LSTM(4, 5), 0, "LSTM"), (nn.GRU(4, 5), 1, "GRU")]
)
def test_operators_name_what_nobody_uses(
    layer: nn.RNNBase, used: int, op_type: str, tmp_path: Path
) -> None:
    path = tmp_path / "scores.onnx"
    export_onnx(Scores(layer, used), X, path, form="native", portable=True, sizes=(2,))
    (outputs,) = [node.output for node in onnx.load(path).graph.node if node.op_type == op_type]
    assert len(outputs) == {"LSTM": 3, "GRU": 2}[op_type]
    assert all(outputs)


def test_a_batch_that_is_asked_for_is_refused() -> None:
    options = ExportOptions(portable=True, dynamic_shapes={"input": {1: "rows"}})
    with pytest.raises(DynamicAxisError, match=r"writes the batch as a number, .* asks for rows"):
        CapturedModel.of(nn.GRU(4, 5), X, None, options, dynamic_time=True)
