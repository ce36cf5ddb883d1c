"""Form "unrolled": the numbers of torch.nn for every configuration, and nothing in the graph that is not needed."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import deploy_rnn
from deploy_rnn.export import export_onnx

# batch, steps, hidden: every one of the awkward sizes, each with different others
SIZES = [
    (1, 1, 8),
    (2, 2, 1),
    (5, 7, 63),
    (1, 33, 1),
    (2, 7, 8),
    (5, 1, 63),
    (1, 2, 63),
    (5, 33, 8),
]


@pytest.mark.parametrize("with_h0", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_matches_torch_nn_rnn(
    bidirectional: bool,
    num_layers: int,
    nonlinearity: str,
    bias: bool,
    batch_first: bool,
    with_h0: bool,
    tmp_path: Path,
) -> None:
    """`export_onnx` compares with torch.nn.RNN itself and raises; that it can tell is tested apart."""
    options = [bidirectional, num_layers - 1, nonlinearity == "tanh", bias, batch_first, with_h0]
    batch, steps, hidden = SIZES[
        sum(value << place for place, value in enumerate(map(int, options))) % len(SIZES)
    ]
    dtype = torch.float64 if bias == with_h0 else torch.float32
    layer = nn.RNN(
        3, hidden, num_layers, nonlinearity, bias, batch_first, bidirectional=bidirectional, dtype=dtype
    )  # fmt: skip
    x = torch.randn(*((batch, steps) if batch_first else (steps, batch)), 3, dtype=dtype)
    h0 = torch.randn(num_layers * (2 if bidirectional else 1), batch, hidden, dtype=dtype)
    report = export_onnx(
        layer, (x, h0) if with_h0 else (x,), tmp_path / "rnn.onnx", form="unrolled"
    )
    assert report.comparisons
    assert not report.failures
    walks = num_layers * (2 if bidirectional else 1)
    assert report.nodes <= 2 * walks * steps + 4 * walks + 9


GATED: dict[str, tuple[type[nn.RNNBase], dict[str, int]]] = {
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
    "lstm with projection": (nn.LSTM, {"proj_size": 2}),
}
PROJECTED = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)


def start(layer: nn.RNNBase, batch: int) -> Any:
    """Random states, as the layer takes them."""
    walks, dtype = layer.num_layers * (2 if layer.bidirectional else 1), layer.weight_ih_l0.dtype
    h = torch.randn(walks, batch, layer.proj_size or layer.hidden_size, dtype=dtype)
    return (
        (h, torch.randn(walks, batch, layer.hidden_size, dtype=dtype))
        if isinstance(layer, nn.LSTM)
        else h
    )


@PROJECTED
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("family", GATED)
def test_matches_torch_nn(
    family: str, bidirectional: bool, num_layers: int, with_states: bool, tmp_path: Path
) -> None:
    """`export_onnx` compares all outputs, the final states too, and raises. Bias, layout and dtype take every value
    beside every value of the others.
    """
    cls, options = GATED[family]
    bias, batch_first = (
        (num_layers == 2) ^ with_states ^ (family == "lstm"),
        bidirectional ^ with_states,
    )
    dtype = torch.float64 if (num_layers == 2) ^ bidirectional else torch.float32
    batch, steps, hidden = (2, 7, 63) if bias else (5, 3, 8)
    layer = cls(
        3,
        hidden,
        num_layers,
        bias,
        batch_first,
        bidirectional=bidirectional,
        dtype=dtype,
        **options,
    )
    x = torch.randn(*((batch, steps) if batch_first else (steps, batch)), 3, dtype=dtype)
    report = export_onnx(
        layer,
        (x, start(layer, batch)) if with_states else (x,),
        tmp_path / "layer.onnx",
        form="unrolled",
    )
    assert {each.output for each in report.comparisons} == {
        "output",
        "h_n",
        *(["c_n"] if cls is nn.LSTM else []),
    }
    assert {each.case for each in report.comparisons if "without" in each.case} == (
        {f"random, B={size}, without h0{' and c0' * (cls is nn.LSTM)}" for size in (1, 3, 7)}
        if with_states
        else set()
    )


@PROJECTED
@pytest.mark.parametrize(
    ("cls", "options", "nodes"),
    [(nn.RNN, {}, 2), (nn.GRU, {}, 10), (nn.LSTM, {}, 10), (nn.LSTM, {"proj_size": 2}, 11)],
)
def test_the_nodes_of_a_step(
    cls: type[nn.RNNBase], options: dict[str, int], nodes: int, tmp_path: Path
) -> None:
    layer = cls(3, 4, bidirectional=True, **options)
    counts = [
        export_onnx(
            layer,
            (torch.randn(steps, 2, 3), start(layer, 2)),
            tmp_path / "layer.onnx",
            form="unrolled",
        ).nodes
        for steps in (4, 5)
    ]
    assert counts[1] - counts[0] == 2 * nodes


def test_the_case_that_started_it_all(tmp_path: Path) -> None:
    layer = nn.RNN(10, 12, 2, bidirectional=True, bias=False)
    export_onnx(
        layer,
        (torch.randn(2, 2, 10), torch.randn(4, 2, 12)),
        tmp_path / "rnn.onnx",
        form="unrolled",
    )


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_step_is_one_gemm_and_one_activation(
    num_layers: int, bidirectional: bool, tmp_path: Path
) -> None:
    steps, directions = 9, 2 if bidirectional else 1
    layer = nn.RNN(3, 4, num_layers, "relu", bidirectional=bidirectional)
    h0 = torch.randn(num_layers * directions, 2, 4)
    export_onnx(layer, (torch.randn(steps, 2, 3), h0), tmp_path / "rnn.onnx", form="unrolled")
    graph = onnx.load(tmp_path / "rnn.onnx").graph
    counts = Counter(node.op_type for node in graph.node)
    walks = num_layers * directions
    assert counts["Gemm"] == walks * steps + walks  # each step, and the input of all steps
    assert counts["Relu"] == walks * steps
    rest = {name: count for name, count in counts.items() if name not in ("Gemm", "Relu")}
    assert rest.keys() <= {"Reshape", "Split", "Concat"}
    assert sum(rest.values()) <= 3 * walks + 6


def test_the_number_of_nodes_at_a_hundred_steps(tmp_path: Path) -> None:
    report = export_onnx(
        nn.RNN(8, 16, 2, bidirectional=True),
        torch.randn(100, 2, 8),
        tmp_path / "rnn.onnx",
        form="unrolled",
    )
    assert report.nodes <= 2 * 2 * 2 * 100 + 16
    assert report.inputs[0].shape == (100, "B", 8)


def test_the_file_says_the_shape_of_every_step(tmp_path: Path) -> None:
    """Without, opening it takes time quadratic in the steps."""
    layer, h0 = nn.RNN(3, 4), torch.randn(1, 2, 4)
    export_onnx(
        layer,
        (torch.randn(5, 2, 3), h0),
        tmp_path / "rnn.onnx",
        kwargs={"lengths": torch.tensor([5, 2])},
        form="unrolled",
    )
    inferred = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "rnn.onnx")).graph
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in inferred.value_info
    }
    steps = [output for node in inferred.node if node.op_type == "Tanh" for output in node.output]
    assert len(steps) == 5
    assert [shapes[name] for name in steps] == 5 * [["B", 4]]


@pytest.mark.parametrize("opset_version", [18, 19, 20])
def test_opsets(opset_version: int, tmp_path: Path) -> None:
    report = export_onnx(
        nn.RNN(3, 4, 2, bidirectional=True),
        torch.randn(5, 2, 3),
        tmp_path / "rnn.onnx",
        opset_version=opset_version,
        form="unrolled",
    )
    assert report.opset == opset_version


def test_our_own_layer_exports_the_same_graph(tmp_path: Path) -> None:
    layer = nn.RNN(3, 4, 2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    export_onnx(layer, x, tmp_path / "theirs.onnx", form="unrolled")
    export_onnx(deploy_rnn.convert(layer), x, tmp_path / "ours.onnx", form="unrolled")
    assert (tmp_path / "theirs.onnx").read_bytes() == (tmp_path / "ours.onnx").read_bytes()


def test_an_unused_final_state_is_not_computed(tmp_path: Path) -> None:
    class LastStep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.rnn(x)[0]
            return output

    with_state = export_onnx(
        nn.RNN(3, 4), torch.randn(5, 2, 3), tmp_path / "layer.onnx", form="unrolled"
    )
    without = export_onnx(
        LastStep(), torch.randn(5, 2, 3), tmp_path / "model.onnx", form="unrolled"
    )
    assert without.nodes < with_state.nodes
