"""Which inputs are indices into a table, and what becomes of an index that is not in it."""

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.errors import InputError
from deploy_rnn.export import export_onnx
from deploy_rnn.export.capture.indices import table_rows
from deploy_rnn.export.onnx_file import OnnxFile
from deploy_rnn.serving import Engine

INPUTS = "int64[B, T] tokens, bool[] flag, float[20, 3] table, float[9, 3] small"
CONSTANTS = "int64[1] one = {1}, int64[1] last = {-1}, int64[1] before = {-9223372036854775807}"
HEAD = f'<ir_version: 8, opset_import: ["" : 18]> g ({INPUTS}) => (float y) <{CONSTANTS}>'


def rows_in(nodes: str) -> dict[str, int]:
    """Those of a graph with these nodes."""
    model = onnx.parser.parse_model(f"{HEAD} {{ {nodes} }}")
    return table_rows(ir.from_proto(model).graph)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Gather (table, tokens)",
        "a = Transpose (tokens) b = Cast <to = 6> (a) c = Unsqueeze (b, one) y = Gather (table, c)",
        "a = Concat <axis = 1> (tokens, tokens) y = Gather (table, a)",
        "a = Slice (tokens, last, before, one, last) y = Gather (table, a)",
    ],
)
def test_an_input_that_goes_straight_into_a_table(nodes: str) -> None:
    assert rows_in(nodes) == {"tokens": 20}


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Gather <axis = 1> (table, tokens)",
        "a = Clip (tokens, one) y = Gather (table, a)",
        "a = Add (tokens, one) y = Gather (table, a)",
        "a = Slice (tokens, one, one) y = Gather (table, a)",
        "a = Slice (tokens, last, one, one, last) y = Gather (table, a)",
        "a = Gather (tokens, one) y = Gather (table, a)",
        "a = Unsqueeze (tokens, one) y = GatherND (table, a)",
        "y = Gather (table, one)",
        "y = other.Gather (table, tokens)",
    ],
)
def test_an_input_that_does_not(nodes: str) -> None:
    assert rows_in(nodes) == {}


def test_of_two_tables_the_smaller_one_counts() -> None:
    assert rows_in("a = Gather (table, tokens) b = Gather (small, tokens)") == {"tokens": 9}


def test_in_a_branch_the_larger_one_counts() -> None:
    first = "t () => (float a) { a = Gather (table, tokens) }"
    second = "e () => (float b) { b = Gather (small, tokens) }"
    third = "e () => (float b) { b = Cast <to = 1> (tokens) }"
    branches = "y = If (flag) <then_branch = {}, else_branch = {}>"
    assert rows_in(branches.format(first, second)) == {"tokens": 20}
    assert rows_in(branches.format(first, third)) == {}


def test_in_a_loop() -> None:
    body = "body (float[B, 3] h, int64[B] token) => (float[B, 3] k) { x = Gather (small, token) k = Add (h, x) }"
    loop = f"h = Gather (table, one) y = Scan <num_scan_inputs = 1, body = {body}> (h, tokens)"
    assert rows_in(loop) == {"tokens": 9}


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
    assert file.table_rows == {"tokens": 20}
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
