"""`inspect` reads any .onnx file with onnx alone, and runs nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import deploy_rnn
from deploy_rnn.errors import LoadError
from deploy_rnn.export import export_onnx
from deploy_rnn.export.onnx_file import OnnxFile


def test_a_file_of_ours(tmp_path: Path) -> None:
    lengths = torch.tensor([5, 2])
    path = tmp_path / "gru.onnx"
    report = export_onnx(
        nn.GRU(3, 4), torch.randn(5, 2, 3), path, kwargs={"lengths": lengths}, form="scan"
    )
    file = OnnxFile.read(path)
    assert (file.path, file.form, file.bytes) == (str(path), "scan", path.stat().st_size)
    assert (file.inputs, file.outputs, file.lengths) == (
        report.inputs,
        report.outputs,
        {"lengths": "T"},
    )
    assert file.producer == f"deploy-rnn {deploy_rnn.__version__}"
    assert file.opsets == {"": 18}
    assert file.metadata == {}
    assert file.dynamic["T"] == ("input axis 0", "output axis 0")
    assert file.dynamic["B"] == ("input axis 1", "lengths axis 0", "output axis 1", "h_n axis 1")
    assert file.nodes == report.nodes
    inner_nodes = sum(file.node_types.values()) - file.nodes
    assert inner_nodes > 0  # those in the loop's body
    assert f"  nodes    {report.nodes}, and {inner_nodes} in loops and branches: " in str(file)
    assert file.node_types["Scan"] == 1
    assert file.weight_bytes >= 4 * (12 * 3 + 12 * 4 + 2 * 12)
    lines = str(file).splitlines()
    assert lines[0] == f"{path}: scan, {path.stat().st_size / 1e3:,.0f} kB, opset 18"
    assert "  input    input: float32 [T, B, 3]" in lines
    assert "  dynamic  T: input axis 0, output axis 0" in lines
    assert "  lengths  lengths: at most T each" in lines


def relu(graph_name: str, shape: Any = ("N", None, 0, 7)) -> onnx.GraphProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, shape) for name in "xy")
    return helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], graph_name, [x], [y])


def saved(graph: onnx.GraphProto, path: Path, **more: Any) -> Path:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("theirs", 3)]
    onnx.save(helper.make_model(graph, opset_imports=imports, **more), path)
    return path


def test_a_file_of_others(tmp_path: Path) -> None:
    file = OnnxFile.read(saved(relu("g"), tmp_path / "x.onnx"))
    assert file.form is None
    assert str(file.inputs[0]) == "x: bfloat16 [N, x.1, 0, 7]"
    assert file.opsets == {"": 17, "theirs": 3}
    assert file.dynamic == {
        "N": ("x axis 0", "y axis 0"),
        "x.1": ("x axis 1",),
        "y.1": ("y axis 1",),
    }
    assert str(file).startswith(
        f"{tmp_path / 'x.onnx'}: not by deploy-rnn, 0 kB, opset 17, theirs 3\n"
    )
    assert str(file).endswith("  weights  0 bytes\n  producer unknown\n  nodes    1: 1 Relu")
    assert json.loads(json.dumps(file.to_dict()))["nodes"] == 1


def test_unusual_inputs(tmp_path: Path) -> None:
    graph = relu("g", shape=None)
    graph.input.append(helper.make_tensor_sequence_value_info("seq", TensorProto.FLOAT, [2]))
    graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, []))
    graph.input.append(
        helper.make_tensor_value_info("weight", TensorProto.FLOAT, [2])
    )  # as before IR version 4
    graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "weight"))
    file = OnnxFile.read(saved(graph, tmp_path / "x.onnx"))
    assert [str(spec) for spec in file.inputs] == [
        "x: bfloat16 [...]",
        "seq: sequence []",
        "text: string []",
    ]
    assert file.weight_bytes == 8


def test_subgraphs_and_functions_count(tmp_path: Path) -> None:
    inner = relu("inner")
    inner.initializer.append(numpy_helper.from_array(np.zeros(3, np.int64), "w"))
    constant = helper.make_node(
        "Constant", [], ["k"], value=numpy_helper.from_array(np.zeros(5, np.float64))
    )
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    graph = relu("outer")
    graph.node.extend([constant, branch, helper.make_node("Own", ["x"], ["z"], domain="theirs")])
    body = [
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("If", ["a"], ["b"], then_branch=inner),
    ]
    own = helper.make_function("theirs", "Own", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    file = OnnxFile.read(saved(graph, tmp_path / "x.onnx", functions=[own]))
    assert file.node_types == {"Relu": 4, "If": 2, "Constant": 1, "theirs::Own": 1, "Tanh": 1}
    assert file.weight_bytes == 2 * 24 + 40


def test_the_rarest_types_are_counted_together(tmp_path: Path) -> None:
    graph = relu("g")
    graph.node.extend(helper.make_node(f"Op{number}", ["x"], []) for number in range(11))
    file = OnnxFile.read(saved(graph, tmp_path / "x.onnx"))
    assert str(file).endswith(
        "nodes    12: 1 Relu, " + ", ".join(f"1 Op{n}" for n in range(9)) + ", 2 of 2 other types"
    )


def test_external_data_is_measured_where_it_is(tmp_path: Path) -> None:
    graph = relu("g")
    graph.initializer.append(numpy_helper.from_array(np.zeros(1000, np.float32), "w"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(
        model, tmp_path / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=0
    )
    file = OnnxFile.read(tmp_path / "x.onnx")
    assert file.weight_bytes == 4000
    assert file.bytes == (tmp_path / "x.onnx").stat().st_size + 4000
    assert file.missing_data == {}
    (tmp_path / "x.data").write_bytes(bytes(3999))
    file = OnnxFile.read(tmp_path / "x.onnx")
    assert file.missing_data == {"x.data": "has 3,999 bytes, the weights in it need 4,000"}
    (tmp_path / "x.data").unlink()
    file = OnnxFile.read(tmp_path / "x.onnx")
    assert file.weight_bytes == 4000
    assert (
        "  missing  x.data: this file has the weights, and is not there" in str(file).splitlines()
    )
    assert "x.data" in file.to_dict()["missing_data"]


def test_external_data_elsewhere_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(100))
    (tmp_path / "folder").mkdir()
    graph = relu("g")
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="../secret")
    graph.initializer.append(tensor)
    path = saved(graph, tmp_path / "folder/x.onnx")
    assert OnnxFile.read(path).bytes == path.stat().st_size
    assert OnnxFile.read(path).weight_bytes == 12
    assert OnnxFile.read(path).missing_data["../secret"].startswith("leads out of the folder")


def test_other_metadata_is_shown(tmp_path: Path) -> None:
    model = helper.make_model(relu("g"))
    helper.set_model_props(model, {"deploy_rnn.form": "native", "author": "Elman"})
    onnx.save(model, tmp_path / "x.onnx")
    file = OnnxFile.read(tmp_path / "x.onnx")
    assert file.metadata == {"author": "Elman"}
    assert "  author: Elman" in str(file).splitlines()


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x08\x08", bytes(range(256))])
def test_what_is_not_onnx_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(LoadError, match=r"x.onnx' is not an ONNX file"):
        OnnxFile.read(tmp_path / "x.onnx")


def test_lengths_that_are_not_json_are_refused(tmp_path: Path) -> None:
    model = helper.make_model(relu("g"))
    helper.set_model_props(model, {"deploy_rnn.lengths": "[3"})
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(LoadError, match="has metadata of deploy-rnn that is not a JSON object"):
        OnnxFile.read(tmp_path / "x.onnx")


def test_neither_torch_nor_onnxruntime_is_needed(tmp_path: Path) -> None:
    path = saved(relu("g"), tmp_path / "x.onnx")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnxruntime', 'onnxscript', 'onnx_ir'): sys.modules[name] = None\n"
        "from deploy_rnn.cli import main\n"
        f"main(['inspect', {str(path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path}: not by deploy-rnn")


def test_an_output_without_a_shape_has_no_axes(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz"]
    nodes = [helper.make_node("Squeeze", ["x"], [name]) for name in "yz"]
    file = OnnxFile.read(saved(helper.make_graph(nodes, "g", [x], outputs), tmp_path / "m.onnx"))
    assert "  output   y: float32 [...]" in str(file).splitlines()
    assert file.dynamic == {"N": ("x axis 0",)}
    assert file.to_dict()["outputs"][0] == {"name": "y", "dtype": "float32", "shape": None}


class Positions(nn.Module):
    """One position for each of six steps."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(6, 1))
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.rnn(x + self.positions)[0]


def test_an_axis_that_the_model_fixes_is_fixed_in_the_outputs_too(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    auto = torch.export.Dim.AUTO
    shapes = {"x": {0: auto, 1: auto}}
    export_onnx(Positions(), torch.randn(2, 6, 3), path, form="scan", dynamic_shapes=shapes)
    file = OnnxFile.read(path)
    assert file.inputs[0].shape[1:] == (6, 3)
    assert file.outputs[0].shape[1:] == (6, 4)
    assert len(file.dynamic) == 1
