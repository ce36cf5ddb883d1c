"""`verify` finds what is wrong with a file: each test plants a fault and asks for its discovery."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from deploy_rnn.errors import ExportError, LoadError, VerificationError
from deploy_rnn.export import export_onnx, verify
from deploy_rnn.export.forms.cells import CELLS, OnnxCell, StepBuild
from deploy_rnn.nn import cells

STEPS = 6


@pytest.fixture
def layer() -> nn.RNN:
    return nn.RNN(3, 8, 2, bidirectional=True)


@pytest.fixture
def args() -> tuple[Tensor, Tensor]:
    return torch.randn(STEPS, 2, 3), torch.randn(4, 2, 8)


@pytest.fixture
def exported(layer: nn.RNN, args: tuple[Tensor, Tensor], tmp_path: Path) -> Path:
    export_onnx(layer, args, tmp_path / "rnn.onnx", form="unrolled")
    return tmp_path / "rnn.onnx"


def test_a_good_file_passes_and_is_left_alone(layer: nn.RNN, args: Any, exported: Path) -> None:
    before = exported.read_bytes()
    report = verify(exported, layer, args)
    assert not report.failures
    assert exported.read_bytes() == before
    for outputs in report.worst.values():
        assert outputs.keys() == {"output", "h_n"}
        for comparison in outputs.values():
            assert 0 < comparison.max_abs_error < 1e-5
            assert comparison.max_rel_error > 0


def one_weight_changed(graph: onnx.GraphProto, name: str = "rnn0.weight_hh_l1_reverse.T") -> None:
    initializer = next(tensor for tensor in graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(initializer).copy()
    weight[2, 3] += 2e-3
    initializer.CopyFrom(numpy_helper.from_array(weight, name))


def one_input_weight_changed(graph: onnx.GraphProto) -> None:
    one_weight_changed(graph, "rnn0.weight_ih_l0.T")


def reverse_written_at_the_mirrored_step(graph: onnx.GraphProto) -> None:
    concat = node_writing(graph, "rnn0.l1r.h")
    turned = list(reversed(concat.input))
    del concat.input[:]
    concat.input.extend(turned)


def input_projection_without_bias(graph: onnx.GraphProto) -> None:
    del node_writing(graph, "rnn0.l0f.x").input[2]


def reverse_final_state_from_the_wrong_end(graph: onnx.GraphProto) -> None:
    finals = node_writing(graph, "rnn0.h_n.rows")
    finals.input[1] = f"rnn0.l0r.h{STEPS - 1}"


def directions_exchanged(graph: onnx.GraphProto) -> None:
    joined = node_writing(graph, "rnn0.l1.output")
    joined.input[0], joined.input[1] = joined.input[1], joined.input[0]


def h0_of_two_directions_exchanged(graph: onnx.GraphProto) -> None:
    split = node_writing(graph, "rnn0.h0.0")
    split.output[0], split.output[1] = split.output[1], split.output[0]


def one_step_with_the_other_activation(graph: onnx.GraphProto) -> None:
    node_writing(graph, "rnn0.l0f.h3").op_type = "Softsign"


def one_step_reads_the_first_layer_again(graph: onnx.GraphProto) -> None:
    node_writing(graph, "rnn0.l1f.g2").input[0] = "rnn0.l0f.h1"


def node_writing(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if name in node.output)


FAULTS = [
    one_weight_changed,
    one_input_weight_changed,
    reverse_written_at_the_mirrored_step,
    input_projection_without_bias,
    reverse_final_state_from_the_wrong_end,
    directions_exchanged,
    h0_of_two_directions_exchanged,
    one_step_with_the_other_activation,
    one_step_reads_the_first_layer_again,
]


@pytest.mark.parametrize("plant", FAULTS)
def test_a_planted_fault_is_found(
    plant: Callable[[onnx.GraphProto], None], layer: nn.RNN, args: Any, exported: Path
) -> None:
    model = onnx.load(exported)
    plant(model.graph)
    onnx.save(model, exported)
    with pytest.raises(
        VerificationError, match=r"rnn.onnx is not the model: `(output|h_n)` differs by .* first at"
    ):
        verify(exported, layer, args)


def test_the_error_has_the_report_and_says_where(layer: nn.RNN, args: Any, exported: Path) -> None:
    model = onnx.load(exported)
    one_step_with_the_other_activation(model.graph)
    onnx.save(model, exported)
    with pytest.raises(VerificationError) as raised:
        verify(exported, layer, args)
    report = raised.value.report
    assert report is not None
    assert report.failures
    failures = [
        failure
        for failure in report.failures
        if failure.output == "output" and "B=7" in failure.case
    ]
    assert len(failures) == 4  # with and without h0, graph optimisations off and on
    for comparison in failures:
        # Step 3 of layer 0 is wrong; the reverse direction of layer 1 carries that to step 0.
        assert comparison.first_bad is not None
        assert comparison.first_bad[0] == 0
        assert comparison.used > 1
    assert "inf" not in report.to_json()


def test_an_infinite_difference_is_a_string_in_json(
    layer: nn.RNN, args: Any, exported: Path
) -> None:
    model = onnx.load(exported)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "rnn0.l1f.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, np.nan, np.float32), bias.name))
    onnx.save(model, exported)
    with pytest.raises(VerificationError) as raised:
        verify(exported, layer, args)
    assert raised.value.report is not None
    assert '"difference": "inf"' in raised.value.report.to_json()


class Masked(nn.Module):
    """Scores of which some are minus a billion, as is usual before a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 8, 2, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output.masked_fill(x[..., :1] > 0, -1e9)


class Growing(nn.Module):
    """States that grow a million times over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 8, 1, "relu")
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(1.8 * torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output


@pytest.mark.parametrize("model", [Masked(), Growing()])
def test_huge_values_do_not_hide_a_fault_among_small_ones(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(25, 2, 3)
    path = tmp_path / "model.onnx"
    export_onnx(model, x, path, form="unrolled")
    file = onnx.load(path)
    concat = node_writing(file.graph, "rnn0.l0f.h")
    concat.input[1] = concat.input[0]  # step 1 has the output of step 0
    onnx.save(file, path)
    with pytest.raises(VerificationError):
        verify(path, model, x)


def test_one_tensor_given_twice_is_checked_as_two(tmp_path: Path) -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            output: Tensor = self.rnn(a - 3 * b)[0]
            return output

    model = Difference()
    x = torch.randn(4, 2, 3)
    export_onnx(model, (x, x), tmp_path / "a.onnx", form="unrolled")
    file = onnx.load(tmp_path / "a.onnx")
    file.graph.input[0].name = "b"
    file.graph.input[1].name = "a"
    onnx.save(file, tmp_path / "a.onnx")
    with pytest.raises(VerificationError):
        verify(tmp_path / "a.onnx", model, (x, x))


def test_an_example_of_one_whole_number_is_reported(tmp_path: Path) -> None:
    model = Picky()
    with pytest.warns(
        UserWarning,
        match=r"the example of `tokens` has one value all over, so a.onnx is checked with",
    ):
        report = export_onnx(
            model,
            torch.zeros(2, 4, dtype=torch.long),
            tmp_path / "a.onnx",
            sizes=(2, 4),
            form="unrolled",
        )
    assert report.unvaried == ("tokens",)
    assert (
        "  tokens: checked with one value only, the example has no other"
        in str(report).splitlines()
    )
    assert (
        export_onnx(
            model, torch.randint(5, (2, 4)), tmp_path / "a.onnx", sizes=(2, 4), form="unrolled"
        ).unvaried
        == ()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atol": float("nan")}, r"`atol` \(=nan\) must be finite and >= 0"),
        ({"rtol": -1.0}, r"`rtol` \(=-1.0\) must be finite and >= 0"),
        ({"sizes": ()}, r"`sizes` \(=\(\)\) must be whole numbers from 1"),
        ({"sizes": 3}, r"`sizes` \(=3\) must be"),
        ({"sizes": (0, 1)}, r"`sizes` \(=\(0, 1\)\) must be"),
    ],
)
def test_limits_that_check_nothing_are_refused(
    options: dict[str, Any], message: str, layer: nn.RNN, args: Any, exported: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        verify(exported, layer, args, **options)
    with pytest.raises(ValueError, match=message):
        export_onnx(layer, args, tmp_path / "b.onnx", **options)
    assert [file.name for file in tmp_path.iterdir()] == ["rnn.onnx"]


def test_a_file_from_elsewhere(layer: nn.RNN, args: Any, exported: Path) -> None:
    """Its operators' domain spelt out, its batch without a name."""
    model = onnx.load(exported)
    model.opset_import[0].domain = "ai.onnx"
    for value in (*model.graph.input[:1], *model.graph.output):
        value.type.tensor_type.shape.dim[1].ClearField("dim_param")
    del model.graph.input[1].type.tensor_type.shape.dim[1]
    model.graph.input[1].type.tensor_type.shape.dim.insert(
        1, onnx.TensorShapeProto.Dimension(dim_value=2)
    )
    onnx.save(model, exported)
    (reason,) = [text for text in verify(exported, layer, args).left_out if "other than" in text]
    assert reason.startswith("input.1 other than 2: RuntimeError: Expected hidden size (4, 1, 8)")
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "B"
    onnx.save(model, exported)
    # Two names for one size.
    report = verify(exported, layer, args)
    assert report.inputs[0].shape == (STEPS, "input.1", 3)
    assert "random, input.1=3" in {comparison.case for comparison in report.comparisons}


@pytest.mark.parametrize("earlier", [False, True])
def test_an_export_that_is_wrong_leaves_no_file(
    earlier: bool, layer: nn.RNN, args: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is in the form itself: it writes tanh as softsign."""
    path = tmp_path / "rnn.onnx"
    if earlier:
        path.write_bytes(b"an earlier file")

    def softsign(step: StepBuild) -> list[ir.Value]:
        return [step.build.scope("h").op("Softsign", step.total())]

    monkeypatch.setitem(CELLS, cells.tanh, OnnxCell(softsign, {"": [0]}))
    with pytest.raises(VerificationError, match=r"rnn.onnx is not the model"):
        export_onnx(layer, args, path, form="unrolled")
    assert [file.name for file in tmp_path.iterdir()] == (["rnn.onnx"] if earlier else [])
    assert not earlier or path.read_bytes() == b"an earlier file"


def test_a_frozen_batch_is_found(layer: nn.RNN, args: Any, exported: Path) -> None:
    """A file that says that B is dynamic, and has the batch of the example inside."""
    model = onnx.load(exported)
    shape = next(tensor for tensor in model.graph.initializer if tensor.name == "rnn0.output.shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([STEPS, 2, 16], np.int64), shape.name))
    onnx.save(model, exported)
    with pytest.raises(ExportError, match=r"rnn.onnx fails on random, B=1"):
        verify(exported, layer, args)


def test_a_file_of_another_model_is_refused(args: Any, exported: Path) -> None:
    with pytest.raises(VerificationError, match="is not the model"):
        verify(exported, nn.RNN(3, 8, 2, bidirectional=True), args)
    with pytest.raises(ExportError, match=r"has 2 inputs \(input, h0\), the example has 1 tensors"):
        verify(exported, nn.RNN(3, 8, 2, bidirectional=True), args[:1])
    with pytest.raises(
        VerificationError,
        match=r"`output` is float32\[6, 2, 16\] on example, PyTorch gives float32\[6, 2, 8\]",
    ):
        verify(exported, nn.RNN(3, 8, 4), args)


def test_weights_among_the_inputs_are_not_taken_for_inputs(
    layer: nn.RNN, args: Any, exported: Path
) -> None:
    """Files of an IR version below 4 list them there."""
    model = onnx.load(exported)
    for weight in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        )
    onnx.save(model, exported)
    assert [spec.name for spec in verify(exported, layer, args).inputs] == ["input", "h0"]


def test_an_example_of_another_rank_is_refused(layer: nn.RNN, args: Any, exported: Path) -> None:
    x, h0 = args
    with pytest.raises(ExportError, match=r"^`input` has 3 axes in the file, its example has 2\.$"):
        verify(exported, layer, (x[:, 0], h0[:, 0]))


def test_damaged_metadata_is_refused(layer: nn.RNN, args: Any, exported: Path) -> None:
    model = onnx.load(exported)
    onnx.helper.set_model_props(model, {"deploy_rnn.lengths": "[3"})
    onnx.save(model, exported)
    with pytest.raises(
        LoadError, match=r"rnn.onnx' has metadata of deploy-rnn that is not a JSON object"
    ):
        verify(exported, layer, args)


def test_a_file_that_is_not_a_model_is_refused(layer: nn.RNN, args: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a file"):
        verify(tmp_path / "nothing.onnx", layer, args)
    (tmp_path / "text.onnx").write_text("hello", encoding="utf-8")
    with pytest.raises(ExportError, match=r"text.onnx is not a valid ONNX model"):
        verify(tmp_path / "text.onnx", layer, args)


def test_explicit_limits_are_kept(layer: nn.RNN, args: Any, exported: Path) -> None:
    with pytest.raises(VerificationError, match=r"allowed 0.0e\+00"):
        verify(exported, layer, args, atol=0, rtol=0)
    report = verify(exported, layer, args, atol=0.25)
    assert {comparison.allowed for comparison in report.comparisons} == {0.25}


def test_a_model_that_amplifies_rounding_is_judged_by_its_own(tmp_path: Path) -> None:
    """Weights that make the net chaotic: float32 PyTorch itself is further from float64 than the usual limit."""
    layer = nn.RNN(3, 32, 1)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(6)
    x = torch.randn(25, 2, 3)
    report = export_onnx(layer, x, tmp_path / "chaotic.onnx", form="unrolled")
    worst = report.worst["CPUExecutionProvider"]["output"]
    assert worst.rounding > 1e-5
    assert worst.allowed == pytest.approx(
        min(10 * worst.rounding, 1e-2)
    )  # all elements are below 1
    model = onnx.load(tmp_path / "chaotic.onnx")
    input_projection_without_bias(model.graph)
    onnx.save(model, tmp_path / "chaotic.onnx")
    with pytest.raises(VerificationError):
        verify(tmp_path / "chaotic.onnx", layer, x)


class Picky(nn.Module):
    """Takes an even batch only, and values that it has an embedding for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.rnn = nn.RNN(3, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and tokens.size(0) % 2:
            raise ValueError("an odd batch")
        output: Tensor = self.rnn(self.embed(tokens))[0]
        return output


def test_sizes_that_the_model_refuses_are_left_out(tmp_path: Path) -> None:
    tokens = torch.randint(5, (2, 4))
    report = export_onnx(Picky(), tokens, tmp_path / "a.onnx", form="unrolled")
    cases = {comparison.case for comparison in report.comparisons}
    assert cases == {"example", "random, B=4", "random, B=6", "random, B=14"}
    assert [re.sub(r": .*: `", ": `", reason) for reason in report.left_out] == [
        f'the model refuses B={size}: `raise ValueError("an odd batch")`: ValueError: an odd batch'
        for size in (1, 3, 7)
    ]
    for reason in report.left_out:
        assert f"  left out: {reason}" in str(report).splitlines()
    report = export_onnx(Picky(), tokens, tmp_path / "a.onnx", sizes=(2, 4, 6), form="unrolled")
    cases = {comparison.case for comparison in report.comparisons}
    assert cases == {"example", "random, B=2", "random, B=4", "random, B=6"}


def test_a_constant_example_is_not_checked_with_constants(tmp_path: Path) -> None:
    """On zeros alone, a wrong weight_ih would go unseen."""
    layer = nn.RNN(3, 4)
    zeros = torch.zeros(4, 2, 3)
    export_onnx(layer, zeros, tmp_path / "a.onnx", form="unrolled")
    model = onnx.load(tmp_path / "a.onnx")
    name = "rnn0.weight_ih_l0.T"
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(VerificationError):
        verify(tmp_path / "a.onnx", layer, zeros)


def test_the_report_reads_well_and_is_json(layer: nn.RNN, args: Any, exported: Path) -> None:
    import json

    report = verify(exported, layer, args)
    lines = str(report).splitlines()
    assert lines[0].endswith("opset 18")
    assert "unrolled, float32, 68 nodes" in lines[0]
    assert lines[1:5] == [
        "  input   input: float32 [6, B, 3]", "  input   h0: float32 [4, B, 8]",
        "  output  output: float32 [6, B, 16]", "  output  h_n: float32 [4, B, 8]",
    ]  # fmt: skip
    assert lines[5] == "  CPUExecutionProvider: checked"
    assert lines[6].startswith("    output: max abs error ")
    loaded = json.loads(report.to_json())
    assert loaded["form"] == "unrolled"
    assert loaded["inputs"][0] == {"name": "input", "dtype": "float32", "shape": [6, "B", 3]}
    assert len(loaded["comparisons"]) == len(report.comparisons)
