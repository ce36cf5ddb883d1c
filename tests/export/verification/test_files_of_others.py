"""Files that deploy-rnn did not write: right ones pass, whatever they leave unsaid, and wrong ones are found."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.export import Report, verify

GATES = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}
"""PyTorch's gates in the order of ONNX's operators."""

STEPS = 5


def weights(layer: nn.RNNBase, name: str) -> np.ndarray:
    """One weight of every direction, its gates in ONNX's order."""
    order = GATES[type(layer).__name__]
    stacked = []
    for suffix in ["", "_reverse"][: 1 + layer.bidirectional]:
        gates = np.split(getattr(layer, f"{name}_l0{suffix}").detach().numpy(), len(order))
        stacked.append(np.concatenate([gates[number] for number in order]))
    return np.stack(stacked)


def write_operator(
    layer: nn.RNNBase,
    path: Path,
    *,
    axes: Sequence[Any] = ("T", "B"),
    lengths: str = "lens",
    reads_lengths: bool = True,
) -> None:
    """A file of one operator of ONNX, with int32 `sequence_lens`, as converters write it; of an LSTM with states."""
    op_type = type(layer).__name__
    T, B = axes
    D = 1 + layer.bidirectional
    H = layer.hidden_size
    float32, int32 = TensorProto.FLOAT, TensorProto.INT32
    value = helper.make_tensor_value_info
    states = ["h", "c"] if op_type == "LSTM" else []
    finals = ["h", "c"] if op_type == "LSTM" else ["h"]
    attributes: dict[str, Any] = {"hidden_size": H}
    attributes["direction"] = "bidirectional" if D == 2 else "forward"
    if op_type == "GRU":
        attributes["linear_before_reset"] = 1
    operands = ["x", "W", "R", "bias", lengths if reads_lengths else ""]
    operands += [f"{name}0" for name in states]
    constants = {
        "W": weights(layer, "weight_ih"),
        "R": weights(layer, "weight_hh"),
        "bias": np.concatenate([weights(layer, "bias_ih"), weights(layer, "bias_hh")], 1),
        "shape": np.array([0, 0, -1]),
    }
    nodes = [
        helper.make_node(op_type, operands, ["Y", *(f"{name}n" for name in finals)], **attributes),
        helper.make_node("Transpose", ["Y"], ["rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["rows", "shape"], ["y"]),
    ]
    inputs = [value("x", float32, [T, B, layer.input_size])]
    inputs += [value(f"{name}0", float32, [D, B, H]) for name in states]
    inputs.append(value(lengths, int32, [B]))
    outputs = [value("y", float32, [T, B, D * H])]
    outputs += [value(f"{name}n", float32, [D, B, H]) for name in finals]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


def write_with_torch(
    model: nn.Module, args: tuple[Any, ...], path: Path, axes: Mapping[str, Any], **options: Any
) -> None:
    """What PyTorch's own exporter makes of a model; `axes` names its inputs, and perhaps the output "y"."""
    names = [name for name in axes if name != "y"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            args,
            str(path),
            dynamo=False,
            input_names=names,
            dynamic_axes=dict(axes),
            **options,
        )


def cases(report: Report) -> set[str]:
    return {comparison.case for comparison in report.comparisons}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cls", [nn.RNN, nn.GRU, nn.LSTM])
def test_an_operator_with_lengths(
    cls: type[nn.RNNBase], bidirectional: bool, tmp_path: Path
) -> None:
    layer = cls(3, 8, bidirectional=bidirectional)
    write_operator(layer, tmp_path / "a.onnx")
    x = torch.randn(STEPS, 2, 3)
    states = torch.randn(1 + bidirectional, 2, 8)
    args = (x, (states, states + 1)) if cls is nn.LSTM else (x,)
    report = verify(tmp_path / "a.onnx", layer, args, kwargs={"lengths": torch.tensor([5, 3])})
    assert {"random, T=3, B=7", "long, T=200"} <= cases(report)
    assert "y" in {over_time.output for over_time in report.over_time}
    # The file is shown as it is.
    assert str(report.inputs[-1]) == "lens: int32 [B]"
    assert report.lengths == {}


@pytest.mark.parametrize("axes", [(None, None), ("T", "B"), (STEPS, "B"), (STEPS, 3), (-1, -1)])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [1, 1, 1], [2, 5, 3]])
def test_lengths_of_any_values_and_axes_of_any_name(
    axes: tuple[Any, Any], lengths: list[int], tmp_path: Path
) -> None:
    layer = nn.GRU(3, 8)
    write_operator(layer, tmp_path / "a.onnx", axes=axes)
    x = torch.randn(STEPS, 3, 3)
    kwargs = {"lengths": torch.tensor(lengths)}
    report = verify(tmp_path / "a.onnx", layer, (x,), kwargs=kwargs, sizes=(1, 4))
    is_dynamic = [not isinstance(axis, int) or axis < 0 for axis in axes]
    assert len(cases(report)) == 1 + 2 * any(is_dynamic) + (not any(is_dynamic)) + is_dynamic[0]


@pytest.mark.parametrize("lengths", [[5, 3], [5, 5]])
def test_a_file_that_ignores_its_lengths_is_found(lengths: list[int], tmp_path: Path) -> None:
    layer = nn.GRU(3, 8, bidirectional=True)
    write_operator(layer, tmp_path / "a.onnx", reads_lengths=False)
    with pytest.raises(VerificationError, match=r"a.onnx is not the model: `(y|hn)` differs"):
        verify(
            tmp_path / "a.onnx",
            layer,
            (torch.randn(STEPS, 2, 3),),
            kwargs={"lengths": torch.tensor(lengths)},
        )


def test_a_wrong_weight_behind_lengths_is_found(tmp_path: Path) -> None:
    layer = nn.GRU(3, 8)
    write_operator(layer, tmp_path / "a.onnx")
    with torch.no_grad():
        layer.weight_hh_l0[2, 1] += 0.01
    with pytest.raises(VerificationError, match=r"a.onnx is not the model"):
        verify(
            tmp_path / "a.onnx",
            layer,
            (torch.randn(STEPS, 2, 3),),
            kwargs={"lengths": torch.tensor([5, 3])},
        )


class Packs(nn.Module):
    """Packs by the lengths, of which there may be a column, or those before a stride."""

    def __init__(self, *, is_sorted: bool = False, column: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 8, batch_first=True)
        self.head = nn.Linear(8, 2)
        self.is_sorted = is_sorted
        self.column = column
        self.stride = stride

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.column:
            lengths = lengths.squeeze(1)
        if self.stride > 1:
            x = x[:, :: self.stride]
            lengths = (lengths + 1) // 2
        packed = pack_padded_sequence(x, lengths, True, enforce_sorted=self.is_sorted)
        scores: Tensor = self.head(pad_packed_sequence(self.rnn(packed)[0], True)[0])
        return scores


@pytest.mark.parametrize("axes", [{0: "b", 1: "t"}, [0, 1]])
@pytest.mark.parametrize("options", [{}, {"is_sorted": True}, {"column": True}, {"stride": 2}])
def test_a_model_that_packs_as_torch_exports_it(
    options: dict[str, Any], axes: Any, tmp_path: Path
) -> None:
    model = Packs(**options).eval()
    lengths = torch.tensor([6, 4, 2])
    args = torch.randn(3, 6, 3), lengths.unsqueeze(1) if model.column else lengths
    rows = {0: "b"} if isinstance(axes, dict) else [0]
    file_axes = {"x": axes, "lengths": rows, "y": axes}
    write_with_torch(model, args, tmp_path / "a.onnx", file_axes, output_names=["y"])
    report = verify(tmp_path / "a.onnx", model, args)
    # PyTorch returns as many steps as the longest row has, the file always all of them.
    assert report.untrimmed == ("y",)
    line = "  y: has the steps beyond the longest row, which PyTorch leaves out; they were not compared"
    assert line in str(report).splitlines()
    assert line.strip() in report.to_html()
    assert any("=200" in case for case in cases(report))
    with torch.no_grad():
        model.head.bias[1] += 0.01
    with pytest.raises(VerificationError, match=r"a.onnx is not the model: `y` differs"):
        verify(tmp_path / "a.onnx", model, args)


def test_an_output_with_fewer_steps_than_the_longest_row_is_found(tmp_path: Path) -> None:
    model = Packs().eval()
    args = torch.randn(3, 6, 3), torch.tensor([6, 4, 2])
    axes = {0: "b", 1: "t"}
    file_axes = {"x": axes, "lengths": {0: "b"}, "y": axes}
    write_with_torch(model, args, tmp_path / "a.onnx", file_axes, output_names=["y"])
    file = onnx.load(tmp_path / "a.onnx")
    file.graph.node[-1].output[0] = "all"
    for name, value in {"one": [1], "last": [-1]}.items():
        file.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    file.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    file.graph.node.append(helper.make_node("Slice", ["all", "first", "last", "one"], ["y"]))
    onnx.save(file, tmp_path / "a.onnx")
    with pytest.raises(VerificationError, match=r"`y` is float32\[3, 5, 2\] on example"):
        verify(tmp_path / "a.onnx", model, args)


@pytest.mark.parametrize("cls", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("shape", [(5, 2), (2, 2), (1, 1)])
def test_one_size_with_several_names(
    cls: type[nn.RNNBase], shape: tuple[int, int], tmp_path: Path
) -> None:
    """As `dynamic_axes` gives them where axes have numbers; T and B may be equal in the example."""
    layer = cls(3, 8)
    state = torch.zeros(1, shape[1], 8)
    args = torch.randn(*shape, 3), (state, state) if cls is nn.LSTM else state
    axes = {"x": [0, 1], "h": [1]} | ({"c": [1]} if cls is nn.LSTM else {})
    write_with_torch(layer, args, tmp_path / "a.onnx", axes)
    report = verify(tmp_path / "a.onnx", layer, args)
    assert "random, x_dynamic_axes_1=3, x_dynamic_axes_2=7" in cases(report)
    assert report.inputs[1].shape == (1, "h_dynamic_axes_1", 8)
    with torch.no_grad():
        layer.weight_hh_l0[2, 1] += 0.01
    with pytest.raises(VerificationError):
        verify(tmp_path / "a.onnx", layer, args)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 8, batch_first=True)

    def forward(self, tokens: Tensor, unused: Tensor, scale: Tensor) -> Tensor:
        output: Tensor = self.rnn(tokens * scale)[0]
        return output


SCALED_ARGS = torch.randn(2, STEPS, 3), torch.randn(2, 4), torch.rand(2, STEPS, 3)


def write_scaled(model: nn.Module, path: Path, names: Sequence[str]) -> None:
    """Its inputs in another order; PyTorch's exporter drops the one that is not used."""
    tokens, unused, scale = names
    axes = {tokens: {0: "n", 1: "t"}, unused: {0: "n"}, scale: {0: "n", 1: "t"}}
    write_with_torch(model, SCALED_ARGS, path, axes)
    file = onnx.load(path)
    inputs = list(file.graph.input)
    assert [value.name for value in inputs] == [tokens, scale]
    del file.graph.input[:]
    file.graph.input.extend(reversed(inputs))
    onnx.save(file, path)


def test_inputs_in_another_order_are_known_by_their_names(tmp_path: Path) -> None:
    model = Scaled().eval()
    write_scaled(model, tmp_path / "a.onnx", ["tokens", "unused", "scale"])
    report = verify(tmp_path / "a.onnx", model, SCALED_ARGS)
    assert [spec.name for spec in report.inputs] == ["scale", "tokens"]
    assert "random, n=3, t=7" in cases(report)


def test_other_names_in_another_order_are_given(tmp_path: Path) -> None:
    model = Scaled().eval()
    path = tmp_path / "a.onnx"
    write_scaled(model, path, ["in:0", "in:1", "in:2"])
    with pytest.raises(
        ExportError,
        match=r"has 2 inputs \(in:2, in:0\), the example has 3 tensors \(tokens, unused, scale\); "
        "`input_names` has the file's name for each",
    ):
        verify(path, model, SCALED_ARGS)
    verify(path, model, SCALED_ARGS, input_names=["in:0", None, "in:2"])
    with torch.no_grad():
        model.rnn.weight_hh_l0[2, 1] += 0.01
    with pytest.raises(VerificationError):
        verify(path, model, SCALED_ARGS, input_names=["in:0", None, "in:2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"input_names": ["in:0", "in:2"]},
            r"`input_names` \(=\['in:0', 'in:2'\]\) must be a list of 3 names of the file, for "
            "tokens, unused, scale",
        ),
        (
            {"input_names": ["in:0", None, "scale"]},
            "`input_names` has 'scale', which is not in the file: it has in:2, in:0",
        ),
        ({"input_names": ["in:0", None, "in:0"]}, "`input_names` has 'in:0' twice"),
        (
            {"input_names": ["in:0", None, "in:2"], "output_names": ["z"]},
            "`output_names` has 'z', which is not in the file",
        ),
    ],
)
def test_names_that_do_not_fit_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = Scaled().eval()
    write_scaled(model, tmp_path / "a.onnx", ["in:0", "in:1", "in:2"])
    with pytest.raises(ExportError, match=message):
        verify(tmp_path / "a.onnx", model, SCALED_ARGS, **options)


@pytest.mark.parametrize("names", [["output", "h_n"], ["y", "last"]])
def test_outputs_in_another_order(names: list[str], tmp_path: Path) -> None:
    layer = nn.GRU(3, 8)
    args = (torch.randn(STEPS, 2, 3),)
    path = tmp_path / "a.onnx"
    write_with_torch(layer, args, path, {"x": {1: "B"}}, output_names=names)
    file = onnx.load(path)
    outputs = list(file.graph.output)
    del file.graph.output[:]
    file.graph.output.extend(reversed(outputs))
    onnx.save(file, path)
    assert not verify(path, layer, args, output_names=names).failures
    if names == ["output", "h_n"]:
        assert not verify(path, layer, args).failures
    else:
        with pytest.raises(VerificationError):
            verify(path, layer, args)


def test_whole_numbers_of_another_type(tmp_path: Path) -> None:
    """TensorFlow's token numbers are int32, PyTorch's int64."""
    model = nn.Sequential(nn.Embedding(9, 3), nn.GRU(3, 8, batch_first=True)).eval()
    tokens = torch.randint(9, (2, STEPS))
    write_with_torch(model, (tokens.int(),), tmp_path / "a.onnx", {"input": {0: "n", 1: "t"}})
    assert not verify(tmp_path / "a.onnx", model, (tokens,)).failures


def test_an_example_of_another_size_than_the_file_fixes(tmp_path: Path) -> None:
    layer = nn.GRU(3, 8)
    write_with_torch(layer, (torch.randn(STEPS, 1, 3),), tmp_path / "a.onnx", {"x": {0: "T"}})
    with pytest.raises(
        ExportError, match="axis 1 of `x` is 1 in the file, 2 in its example; give an example that"
    ):
        verify(tmp_path / "a.onnx", layer, (torch.randn(STEPS, 2, 3),))
