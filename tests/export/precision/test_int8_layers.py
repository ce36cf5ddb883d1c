"""Linear layers and embeddings of eight bits, around the recurrent ones."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.export import export_onnx, verify
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.precision.layers import round_layers
from deploy_rnn.export.precision.reference import reference_of
from deploy_rnn.export.precision.rounding import rounded_table
from deploy_rnn.export.precision.scope import Int8Scope
from deploy_rnn.runtime import open_session

LAYERS = ("linear", "embedding")


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4, padding_idx=0)
        self.rnn = nn.RNN(4, 5)
        self.hidden = nn.Linear(5, 6, bias=False)
        self.out = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.out(torch.relu(self.hidden(self.rnn(self.embed(tokens))[0])))
        return output


TOKENS = torch.randint(9, (4, 3), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def tagger() -> nn.Module:
    torch.manual_seed(0)
    return Tagger().eval()


@pytest.fixture(scope="module")
def file(tagger: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layers") / "m.onnx"
    report = export_onnx(
        tagger, TOKENS, path, form="scan", sizes=(2,), precision="int8", int8_layers=LAYERS, max_error=0.1
    )  # fmt: skip
    assert report.file.int8_layers == LAYERS
    # Input and state of the recurrent layer, and two linear layers.
    assert report.op_types["MatMulInteger"] == 4
    assert not {"Gemm", "MatMul"} & report.op_types.keys()
    return path


def matrices(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2
    }


def test_every_matrix_is_of_eight_bits(file: Path, tagger: nn.Module) -> None:
    [output] = open_session(file).run(None, {"tokens": TOKENS.numpy()})
    reference = reference_of(tagger, "int8", Int8Scope(LAYERS))
    [simulated] = reference.outputs(ExampleCall.of(tagger, (TOKENS,)))
    np.testing.assert_allclose(output, simulated, atol=2e-6)
    found = matrices(file)
    assert sorted(array.shape for array in found.values()) == [
        (4, 5),
        (5, 5),
        (5, 6),
        (6, 3),
        (9, 4),
    ]
    floats = [
        tensor
        for tensor in onnx.load(file).graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
    ]
    assert [tuple(tensor.dims) for tensor in floats] == [(9, 1)]


def test_a_table_has_eight_bits_and_a_scale_for_each_row() -> None:
    table = np.array([[0.5, -2.0, 0.1], [0.0, 0.0, 0.0]], np.float32)
    levels, steps = rounded_table(table)
    assert levels.tolist() == [[32, -127, 6], [0, 0, 0]]
    assert (levels.dtype, steps.shape) == (np.int8, (2, 1))
    np.testing.assert_allclose(levels * steps, table, atol=0.5 * 2 / 127)


@pytest.mark.parametrize("shape", [(9, 4), (6, 3)])
def test_one_level_is_found(file: Path, tagger: nn.Module, shape: tuple[int, int]) -> None:
    """Of the padding in the table, too, which no trial need look up."""
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and tuple(tensor.dims) == shape:
            array = numpy_helper.to_array(tensor).copy()
            array[0, 1] += 1
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, file.with_name("changed.onnx"))
    verify(file, tagger, TOKENS, sizes=(2,), long_steps=None)
    with pytest.raises(VerificationError, match=r"changed\.onnx is not the model: .* rounded\."):
        verify(file.with_name("changed.onnx"), tagger, TOKENS, sizes=(2,), long_steps=None)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_kind_that_the_model_lacks(kind: str) -> None:
    """A subclass may compute something else."""

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.ModuleDict({"out": Doubled(4, 2), "table": nn.Embedding(3, 2, max_norm=1.0)})
    with pytest.raises(
        ExportError, match=rf"`int8_layers` has '{kind}', and the model has no .* of"
    ):
        round_layers(model, [kind], nn.Linear.forward)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"precision": "int8", "int8_layers": "linear"},
            "must be a list of 'linear' or 'embedding",
        ),
        (
            {"precision": "int8", "int8_layers": ["conv"]},
            "must be a list of 'linear' or 'embedding",
        ),
        ({"precision": "int8", "int8_layers": [["linear"]]}, "must be a list of 'linear' or"),
        (
            {"precision": "int8", "int8_layers": 5},
            r"`int8_layers` \(=5\) must be a list of 'linear'",
        ),
        ({"precision": "int8", "int8_products": "input"}, "must be 'all' or 'state'"),
        ({"int8_products": "state"}, r"`int8_products` \(='state'\) is for precision='int8'"),
        ({"int8_layers": ["linear"]}, r"`int8_layers` \(=\['linear'\]\) is for precision='int8'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ExportOptions(**options)


class TiedToLayer(nn.Module):
    """A linear layer with the weight of a recurrent one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 4)
        self.out = nn.Linear(4, 4)
        self.out.weight = self.rnn.weight_hh_l0

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.out(self.rnn(x)[0])
        return output


class CalledTwice(TiedToLayer):
    """A linear layer, and its weight in a function."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(super().forward(x), self.out.weight)


class InAndAfterALoop(nn.Module):
    """A linear layer of the input of a loop, and of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.state = nn.Parameter(torch.randn(4, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        def step(h: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            new = torch.tanh(self.linear(row) + h @ self.state)
            return new, new

        outputs = deploy_rnn.scan(step, x.new_zeros(x.size(1), 4), x)[1]
        result: Tensor = self.linear(outputs)
        return result


@pytest.mark.parametrize(
    ("model", "layers", "products"),
    [
        (TiedToLayer(), [], 2),
        (CalledTwice(), ["linear"], 3),
        (InAndAfterALoop(), ["linear"], 3),
    ],
    ids=["tied", "called twice", "loop"],
)
def test_a_weight_is_of_eight_bits_in_all_its_products(
    model: nn.Module, layers: list[Any], products: int, tmp_path: Path
) -> None:
    """With `int8_products="state"`, too."""
    x = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(3))
    report = export_onnx(
        model.eval(), x, tmp_path / "m.onnx", form="scan", sizes=(2,), precision="int8", int8_layers=layers,
        int8_products="state",
    )  # fmt: skip
    assert report.op_types["MatMulInteger"] == products
