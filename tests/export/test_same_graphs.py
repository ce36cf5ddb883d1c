"""Exported files stay the same, node for node: each is compared with its text under `graphs`.

A text has one line for each input, initializer, node and output, so that a change can be read as a diff. Where a change
is meant, write the texts again and look at the diff: python -m tests.export.test_same_graphs
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn import LSTM, Cell, Recurrent
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.forms import FIXED_TIME
from deploy_rnn.export.forms.node_count import MAX_NODES
from deploy_rnn.export.options import ExportOptions

GRAPHS = Path(__file__).parent / "graphs"
STEPS = 2
BATCH = 3
INPUT = 3
HIDDEN = 4


def indrnn(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """h[t] = relu(projected[t] + u * h[t-1])"""
    return [torch.relu(projected + weights[0] * states[0])]


def leaky(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """m[t] = 0.9 m[t-1] + h[t-1], h[t] = tanh(projected[t] + h[t-1] @ W_hh.T + b_hh) + 0.1 m[t]"""
    m = 0.9 * states[1] + states[0]
    return [torch.tanh(projected + torch.baddbmm(weights[1], states[0], weights[0])) + 0.1 * m, m]


class IndRNN(Recurrent):
    cell = Cell(indrnn, diagonal=True)


class Leaky(LSTM):
    cell = Cell(leaky, states=2, bias_in_step=True)


class Tagger(nn.Module):
    """Two stacks, the first of which starts from zeros that the model makes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, INPUT)
        self.lower = nn.LSTM(INPUT, HIDDEN, batch_first=True)
        self.upper = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.score = nn.Linear(HIDDEN, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        zeros = torch.zeros(1, tokens.size(0), HIDDEN)
        scores: Tensor = self.score(
            self.upper(self.lower(self.embed(tokens), (zeros, zeros))[0])[0]
        )
        return scores


class Packs(nn.Module):
    """Two stacks on one packed sequence, the second on what the first returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(INPUT, HIDDEN, bidirectional=True)
        self.second = nn.RNN(2 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, final = self.first(packed)
        return pad_packed_sequence(self.second(output)[0], total_length=x.size(0))[0], final


@dataclass(frozen=True)
class Case:
    """One model, exported in each of `forms`."""

    model: type[nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    forms: tuple[str, ...] = ("unrolled", "scan", "native")
    states: bool = False
    lengths: bool = False
    tokens: bool = False
    export: dict[str, Any] = field(default_factory=dict)


HELD = {"row_ends": "held"}
DEEP = {"num_layers": 2, "bidirectional": True}
CASES = {
    "rnn_tanh": Case(nn.RNN),
    "rnn_relu_deep_states": Case(nn.RNN, {"nonlinearity": "relu", **DEEP}, states=True),
    "rnn_no_bias": Case(nn.RNN, {"bias": False, "batch_first": True}),
    "gru": Case(nn.GRU),
    "gru_deep_states": Case(nn.GRU, DEEP, states=True),
    "gru_no_bias": Case(nn.GRU, {"bias": False}),
    "gru_lengths": Case(nn.GRU, {"bidirectional": True, "batch_first": True}, lengths=True),
    "lstm": Case(nn.LSTM),
    "lstm_states": Case(nn.LSTM, {"batch_first": True, "bidirectional": True}, states=True),
    "lstm_lengths": Case(nn.LSTM, {"bidirectional": True}, states=True, lengths=True),
    "gru_lengths_held": Case(nn.GRU, {"bidirectional": True}, ("native",), lengths=True, export=HELD),
    "lstm_lengths_held": Case(nn.LSTM, {"bidirectional": True}, ("native",), lengths=True, export=HELD),
    "lstm_projection": Case(nn.LSTM, {"proj_size": 2, "bidirectional": True}, ("unrolled", "scan")),
    "lstm_streaming": Case(nn.LSTM, {"num_layers": 2}, export={"streaming": True}),
    "lstm_all_fixed": Case(nn.LSTM, {"bidirectional": True}, ("scan",), lengths=True, export={"dynamic_shapes": {}}),
    "gru_opset_20": Case(nn.GRU, {"bidirectional": True}, ("unrolled",), export={"opset_version": 20}),
    "indrnn": Case(IndRNN, {"bidirectional": True}, ("unrolled", "scan")),
    "leaky_deep_states": Case(Leaky, DEEP, ("unrolled", "scan"), states=True),
    "leaky_no_bias_lengths": Case(Leaky, {"bias": False, "bidirectional": True}, ("unrolled",), lengths=True),
    "tagger": Case(Tagger, tokens=True),
    "tagger_streaming": Case(Tagger, forms=("scan",), tokens=True, export={"streaming": True}),
    "packs": Case(Packs, forms=("unrolled",), lengths=True, export={
        "dynamic_shapes": {"x": {1: "B"}, "lengths": {0: "B"}}
    }),
}  # fmt: skip
FILES = [f"{name}.{form}" for name, case in CASES.items() for form in case.forms]


def text_of(file: str) -> str:
    """The text of "case.form"."""
    name, form = file.split(".")
    captured = capture(name, dynamic_time=form not in FIXED_TIME)
    return text(ir.to_proto(captured.written(form, max_nodes=MAX_NODES)))


@cache
def capture(name: str, *, dynamic_time: bool) -> CapturedModel:
    """The model of a case, traced once for several forms; what `export_onnx` does before it checks the file."""
    case = CASES[name]
    model, args, kwargs = example(case)
    options = ExportOptions(**case.export)
    return CapturedModel.of(model, args, kwargs, options, dynamic_time=dynamic_time)


def example(case: Case) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any] | None]:
    """Model, args and kwargs."""
    sizes = {} if case.model in (Tagger, Packs) else {"input_size": INPUT, "hidden_size": HIDDEN}
    model = case.model(**sizes, **case.options)
    fill(model)
    args, kwargs = arguments(case)
    return model, args, kwargs


def fill(model: nn.Module) -> None:
    """Give every weight other values, which no rounding changes."""
    count = 0
    with torch.no_grad():
        for parameter in model.parameters():
            numbers = torch.arange(count, count + parameter.numel()).view_as(parameter)
            parameter.copy_((numbers * 7919 % 1021 - 510) / 1024)
            count += parameter.numel()


def arguments(case: Case) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    """The example."""
    batch_first = case.options.get("batch_first", False)
    x = torch.randn(BATCH, STEPS, INPUT) if batch_first else torch.randn(STEPS, BATCH, INPUT)
    args: list[Any] = [torch.randint(7, (BATCH, STEPS)) if case.tokens else x]
    if case.states:
        h = torch.randn(2 * case.options.get("num_layers", 1), BATCH, HIDDEN)
        args.append((h, h.clone()) if issubclass(case.model, (nn.LSTM, LSTM)) else h)
    return tuple(args), {"lengths": torch.tensor([1, STEPS, 2])} if case.lengths else None


def text(model: onnx.ModelProto) -> str:
    """One line for each part of a file."""
    opsets = [f"opset {opset.domain or 'ai.onnx'} {opset.version}" for opset in model.opset_import]
    metadata = [f"metadata {entry.key} = {entry.value}" for entry in model.metadata_props]
    return "\n".join([*opsets, *metadata, *graph_lines(model.graph), ""])


def graph_lines(graph: onnx.GraphProto, indent: str = "") -> Iterator[str]:
    yield f"{indent}graph {graph.name}"
    for value in graph.input:
        yield f"{indent}input {typed(value)}"
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:10]
        yield f"{indent}initializer {tensor.name} {array.dtype} {list(array.shape)} {digest}"
    for position, node in enumerate(graph.node):
        yield from node_lines(node, position, indent)
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.value_info:
        # The type and the shape of a constant stand in its own line.
        if value.name not in constants:
            yield f"{indent}value {typed(value)}"
    for value in graph.output:
        yield f"{indent}output {typed(value)}"


def node_lines(node: onnx.NodeProto, position: int, indent: str) -> Iterator[str]:
    plain = [
        attribute for attribute in node.attribute if attribute.type != onnx.AttributeProto.GRAPH
    ]
    graphs = [
        attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH
    ]
    attributes = "".join(f" {attribute.name}={shown(attribute)}" for attribute in plain)
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    # A name made of the position would change in every line below a new node.
    name = "" if node.name == f"node_{node.op_type}_{position}" else f" [{node.name}]"
    yield f"{indent}{', '.join(node.output)} = {operator}({', '.join(node.input)}){attributes}{name}"
    for graph in graphs:
        yield from graph_lines(graph, indent + "    ")


def shown(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    return str(
        numpy_helper.to_array(value).tolist() if isinstance(value, onnx.TensorProto) else value
    )


def typed(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = ", ".join(size.dim_param or str(size.dim_value) for size in tensor.shape.dim)
    shape = f" [{sizes}]" if tensor.HasField("shape") else ""
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}{shape}"


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("file", FILES)
def test_a_file_is_the_same_node_for_node(file: str) -> None:
    expected = (GRAPHS / f"{file}.txt").read_text(encoding="utf-8")
    assert text_of(file).splitlines() == expected.splitlines()


def test_every_text_has_its_case() -> None:
    assert sorted(path.stem for path in GRAPHS.iterdir()) == sorted(FILES)


if __name__ == "__main__":
    for old_file in GRAPHS.iterdir():
        old_file.unlink()
    for file in FILES:
        (GRAPHS / f"{file}.txt").write_text(text_of(file), encoding="utf-8")
