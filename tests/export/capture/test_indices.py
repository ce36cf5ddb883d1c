"""Which inputs are indices into a table, and what becomes of an index that is not in it."""

from pathlib import Path

import numpy as np
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_rnn.errors import InputError
from deploy_rnn.export import export_onnx
from deploy_rnn.export.capture.indices import index_ranges, refuse_below_zero
from deploy_rnn.export.onnx_file import OnnxFile
from deploy_rnn.metadata import FileMetadata
from deploy_rnn.serving import Engine
from deploy_rnn.tensor_spec import IndexRange

INPUTS = "int64[B, T] tokens, bool[] flag, float[20, 3] table, float[9, 3] small, float[B, T] x, uint8[B, T] bytes"
CONSTANTS = (
    "int64[1] one = {1}, int64 two = {2}, int64[1] last = {-1}, int64[1] before = {-9223372036854775807}, "
    "int64[1] end = {9223372036854775807}, int64[1] zero = {0}, int64[4] ends = {0, 1, 0, 0}, "
    "int64[4] cuts = {0, -1, 0, 0}, int64[2] offsets = {0, 5}, int64 most = {19}"
)
HEAD = (
    f'<ir_version: 8, opset_import: ["" : 18, "other" : 1]> g ({INPUTS}) => (float y) <{CONSTANTS}>'
)


def graph_of(nodes: str) -> ir.Graph:
    model = onnx.parser.parse_model(f"{HEAD} {{ {nodes} }}")
    return ir.from_proto(onnx.shape_inference.infer_shapes(model)).graph


def ranges_in(nodes: str) -> dict[str, IndexRange]:
    """Those of a graph with these nodes."""
    return index_ranges(graph_of(nodes))


def refuses(nodes: str) -> bool:
    """Whether indices below 0 are refused by nodes of the graph, since no check before a run finds them all."""
    graph = graph_of(nodes)
    refuse_below_zero(graph, index_ranges(graph))
    graphs = [graph, *graph.subgraphs()]
    names = [node.op_type for inner_graph in graphs for node in inner_graph]
    return "Less" in names


@pytest.mark.parametrize(
    ("nodes", "least", "most"),
    [
        ("y = Gather (table, tokens)", 0, 19),
        (
            "a = Transpose (tokens) b = Cast <to = 6> (a) c = Unsqueeze (b, one) y = Gather (table, c)",
            0,
            19,
        ),
        ("a = Concat <axis = 1> (tokens, tokens) y = Gather (table, a)", 0, 19),
        ("a = Slice (tokens, last, before, one, last) y = Gather (table, a)", 0, 19),
        ("a = Add (tokens, two) y = Gather (table, a)", -2, 17),
        (
            "a = Add (two, tokens) b = Neg (a) c = Sub (b, one) d = Neg (c) y = Gather (table, d)",
            -3,
            16,
        ),
        ("a = Sub (tokens, two) y = Gather (table, a)", 2, 21),
        ("a = Sub (two, tokens) y = Gather (table, a)", -17, 2),
        ("a = Pad (tokens, ends) y = Gather (table, a)", 0, 19),
        ("a = Tile (tokens, offsets) y = Gather (table, a)", 0, 19),
        # As `roll` is written.
        (
            "a = Slice (tokens, last, end, one) b = Slice (tokens, zero, last, one) "
            "c = Concat <axis = 1> (a, b) y = Gather (table, c)",
            0,
            19,
        ),
        (
            "a = Shape <start = 1, end = 2> (tokens) b = Mod (last, a) c = Slice (tokens, b, a, one) "
            "d = Slice (tokens, zero, b, one) e = Concat <axis = 1> (c, d) y = Gather (table, e)",
            0,
            19,
        ),
        ("y = GatherElements <axis = 0> (table, tokens)", 0, 19),
        ("a = Unsqueeze (tokens, two) y = ScatterElements <axis = 0> (table, a, x)", 0, 19),
    ],
)
def test_an_input_of_which_every_value_is_looked_up(nodes: str, least: int, most: int) -> None:
    assert ranges_in(nodes) == {"tokens": (least, most)}
    assert not refuses(nodes)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Gather <axis = 1> (x, tokens)",  # of as many columns as there are steps
        "a = Mul (tokens, two) y = Gather (table, a)",
        "a = Slice (tokens, one, one) y = Gather (table, a)",
        "a = Slice (tokens, last, one, one, last) y = Gather (table, a)",
        "a = Gather (tokens, one) y = Gather (table, a)",
        "a = Clip (tokens, , most) y = Gather (table, a)",
        "a = Pad (tokens, cuts) y = Gather (table, a)",
        "a = Cast <to = 7> (x) y = Gather (table, a)",
        "a = Where (flag, one, tokens) y = Gather (table, a)",
        "b, a = TopK (x, one) c = Sub (a, one) y = Gather (table, c)",
        # Not the last step.
        "a = Slice (tokens, last, last, one) b = Slice (tokens, zero, last, one) "
        "c = Concat <axis = 1> (a, b) y = Gather (table, c)",
        # Of another axis.
        "a = Slice (tokens, last, end, one) b = Slice (tokens, zero, last, zero) "
        "c = Concat <axis = 1> (a, b) y = Gather (table, c)",
    ],
)
def test_what_is_looked_up_in_part_or_not_known_is_refused_by_the_graph(nodes: str) -> None:
    assert ranges_in(nodes) == {}
    assert refuses(nodes)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Clip (tokens, one) y = Gather (table, a)",
        "a = Clip (tokens, one) b = Sub (a, one) y = Gather (table, b)",
        "a = Abs (tokens) b = Add (a, two) y = Gather (table, b)",
        "a = Mod (tokens, two) b = Mul (a, two) y = Gather (table, b)",
        "a = ArgMax (x) y = Gather (table, a)",
        "b, a = TopK (x, one) y = Gather (table, a)",
        "a = Relu (x) b = Floor (a) c = Cast <to = 7> (b) y = Gather (table, c)",
        "a = Cast <to = 7> (flag) b = Unsqueeze (a, zero) y = Gather (table, b)",
        "a = Unsqueeze (tokens, one) y = GatherND (table, a)",
        "y = Gather (table, one)",
        "y = other.Gather (table, tokens)",
    ],
)
def test_an_index_that_cannot_be_below_zero(nodes: str) -> None:
    assert ranges_in(nodes) == {}
    assert not refuses(nodes)


def test_offsets_that_differ_from_place_to_place() -> None:
    """As of a table for several columns: what is wrong everywhere is refused before a run, the rest by the graph."""
    nodes = "a = Unsqueeze (tokens, two) b = Add (a, offsets) y = Gather (table, b)"
    assert ranges_in(nodes) == {"tokens": (-5, 19)}
    assert refuses(nodes)


def test_bytes_are_not_below_zero() -> None:
    nodes = "a = Cast <to = 7> (bytes) y = Gather (table, a)"
    assert ranges_in(nodes) == {}
    assert not refuses(nodes)


def test_of_two_tables_the_smaller_one_counts() -> None:
    assert ranges_in("a = Gather (table, tokens) b = Gather (small, tokens)") == {"tokens": (0, 8)}


def test_in_a_branch_the_larger_one_counts() -> None:
    first = "t () => (float a) { a = Gather (table, tokens) }"
    second = "e () => (float b) { b = Gather (small, tokens) }"
    third = "e () => (float b) { b = Cast <to = 1> (tokens) }"
    branches = "y = If (flag) <then_branch = {}, else_branch = {}>"
    assert ranges_in(branches.format(first, second)) == {"tokens": (0, 19)}
    assert ranges_in(branches.format(first, third)) == {}
    assert refuses(branches.format(first, third))


def test_in_a_loop() -> None:
    body = "body (float[B, 3] h, int64[B] token) => (float[B, 3] k) { x = Gather (small, token) k = Add (h, x) }"
    loop = f"h = Gather (table, one) y = Scan <num_scan_inputs = 1, body = {body}> (h, tokens)"
    assert ranges_in(loop) == {"tokens": (0, 8)}
    assert not refuses(loop)


@pytest.mark.parametrize(
    ("choice", "is_refused"), [("ArgMax <axis = 1>", False), ("Cast <to = 7>", True)]
)
def test_a_decoder_looks_up_what_it_chose(choice: str, is_refused: bool) -> None:
    """Of its states, the first is an input, and the others are computed in the loop."""
    body = (
        "body (int64[B, 3] token, float[B, 3] f) => (int64[B, 3] chosen, float[B, 3] k) "
        f"{{ e = Gather (small, token) k = Add (e, f) chosen = {choice} (k) }}"
    )
    loop = f"h, y = Scan <num_scan_inputs = 1, body = {body}> (tokens, x)"
    assert ranges_in(loop) == {"tokens": (0, 8)}
    assert refuses(loop) is is_refused


def test_a_file_of_an_older_release_has_the_rows_of_tables() -> None:
    old = FileMetadata.of({"deploy_rnn.table_rows": '{"tokens": 9}'})
    assert old.index_ranges == {"tokens": IndexRange(0, 8)}
    assert FileMetadata.of(old.to_properties()) == old


class Labelled(nn.Module):
    """Tokens into an embedding; kinds into a table, where -1 is the last row in PyTorch, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 3)
        self.table = nn.Parameter(torch.randn(5, 3))
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        output: Tensor = self.rnn(self.embed(tokens) + self.table[kinds])[0]
        return output


def test_an_engine_refuses_what_pytorch_refuses(tmp_path: Path) -> None:
    model = Labelled().eval()
    tokens = torch.randint(20, (2, 5))
    kinds = torch.randint(5, (2, 5))
    path = tmp_path / "m.onnx"
    export_onnx(model, (tokens, kinds), path, form="native", sizes=(2,))
    file = OnnxFile.read(path)
    assert file.index_ranges == {"tokens": (0, 19)}
    assert "indices  tokens: 0 to 19, into a table" in str(file)
    engine = Engine(path)
    kinds[1, 2] = -1
    inputs = {"tokens": tokens.numpy(), "kinds": kinds.numpy()}
    with torch.no_grad():
        expected = model(tokens, kinds)
    np.testing.assert_allclose(engine.run(inputs)["output"], expected, atol=1e-5)
    for wrong in (-1, 20):
        tokens[1, 3] = wrong
        with pytest.raises(IndexError):
            model(tokens, kinds)
        with pytest.raises(
            InputError, match=rf"`tokens` has {wrong} at \[1, 3\]; must be from 0 to 19"
        ):
            engine.run(inputs)


class Prepared(nn.Module):
    """Tokens are changed before they are looked up: moved on by one, of which the first is left out, as classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.rnn = nn.GRU(4 + 4 + 4, 3, batch_first=True)

    def forward(self, tokens: Tensor, numbers: Tensor, classes: Tensor) -> Tensor:
        parts = [
            self.embed(tokens - 1),
            self.embed(F.pad(numbers[:, 1:] * 2, (1, 0))),
            F.one_hot(classes, 4),
        ]
        output: Tensor = self.rnn(torch.cat(parts, -1))[0]
        return output


def test_an_engine_answers_what_pytorch_answers_and_no_more(tmp_path: Path) -> None:
    model = Prepared().eval()
    example = tuple(torch.randint(1, 4, (2, 5)) for _ in range(3))
    path = tmp_path / "m.onnx"
    export_onnx(model, example, path, form="native", sizes=(2,))
    assert OnnxFile.read(path).index_ranges == {"tokens": (1, 9), "classes": (0, 3)}
    engine = Engine(path)
    refused = []
    for number, name in enumerate(("tokens", "numbers", "classes")):
        for index in range(-2, 11):
            tensors = [tensor.clone() for tensor in example]
            tensors[number][1, 2] = index
            arrays = {
                spec.name: tensor.numpy()
                for spec, tensor in zip(engine.inputs, tensors, strict=True)
            }
            try:
                with torch.no_grad():
                    expected = model(*tensors)
            except (IndexError, RuntimeError):
                refused.append((name, index))
                with pytest.raises(InputError):
                    engine.run(arrays)
            else:
                np.testing.assert_allclose(engine.run(arrays)["output"], expected, atol=1e-5)
    assert {("tokens", 0), ("tokens", 10), ("numbers", -1), ("classes", -1), ("classes", 4)} <= set(
        refused
    )
