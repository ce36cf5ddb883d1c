"""The tools of others take the files: what they make of one runs, and gives its numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.forms import FORMS
from deploy_rnn.export.forms.node_count import MAX_NODES
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.saving import save

STEPS = 5
"""With zero states, the recurrent weight is read four times: an even number of transpositions would go unseen."""

Make = Callable[[str], Path]


class TwoLayersOfOneWeight(nn.Module):
    """One layer that is called twice, so that each of its weights is read by two nodes even in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 8)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.rnn(input)[0])[0]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Write a file in a form, for five steps."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("files")
    args = (torch.randn(STEPS, 2, 8),)
    options = ExportOptions()
    model = TwoLayersOfOneWeight()
    captured = CapturedModel.of(model, args, None, options, dynamic_time=False)

    def make(form: str) -> Path:
        path = folder / f"{form}.onnx"
        if not path.exists():
            save(captured.written(form, max_nodes=MAX_NODES), path)
        return path

    return make


def run(model: Path | onnx.ModelProto) -> np.ndarray:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((STEPS, 2, 8), np.float32)
    (output,) = session.run(None, {session.get_inputs()[0].name: x})
    return output


def quantize(source: Path, target: Path) -> None:
    """Of seven bits: the products of eight overflow on a processor without VNNI (docs/precision.md)."""
    quantize_dynamic(source, target, reduce_range=True)


@pytest.mark.parametrize("form", FORMS)
def test_quantize_dynamic_gives_nearly_the_same_numbers(
    form: str, make: Make, tmp_path: Path
) -> None:
    quantize(make(form), tmp_path / "int8.onnx")

    np.testing.assert_allclose(run(tmp_path / "int8.onnx"), run(make(form)), atol=0.03)


def test_quantize_dynamic_takes_what_quant_pre_process_makes(make: Make, tmp_path: Path) -> None:
    quant_pre_process(str(make("unrolled")), str(tmp_path / "prepared.onnx"))
    quantize(tmp_path / "prepared.onnx", tmp_path / "int8.onnx")

    np.testing.assert_allclose(run(tmp_path / "int8.onnx"), run(make("unrolled")), atol=0.03)


@pytest.mark.parametrize("form", FORMS)
def test_the_text_of_a_file_is_read_again(form: str, make: Make) -> None:
    file = onnx.load(make(form))
    again = onnx.parser.parse_model(onnx.printer.to_text(file))

    np.testing.assert_allclose(run(again), run(make(form)), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_constants_have_no_types_besides_their_own(form: str, make: Make) -> None:
    graph = onnx.load(make(form)).graph

    constants = {tensor.name for tensor in graph.initializer}
    assert constants.isdisjoint(value.name for value in graph.value_info)


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_two_layers_share_are_written_once(form: str, make: Make) -> None:
    graph = onnx.load(make(form)).graph

    contents = [tensor.raw_data for tensor in graph.initializer if len(tensor.raw_data) >= 256]
    assert len(contents) == len(set(contents))


def test_the_body_of_a_loop_says_the_shapes_of_its_inputs_and_outputs(make: Make) -> None:
    file = onnx.load(make("scan"))
    # The outermost constants as inputs, which may have other values: nothing can be inferred from them any more.
    for tensor in file.graph.initializer:
        file.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )

    bodies = [node.attribute[0].g for node in file.graph.node if node.op_type == "Scan"]
    assert len(bodies) == 2
    for value in [value for body in bodies for value in [*body.input, *body.output]]:
        assert value.type.tensor_type.HasField("shape")
    np.testing.assert_allclose(run(file), run(make("scan")), atol=1e-6)
