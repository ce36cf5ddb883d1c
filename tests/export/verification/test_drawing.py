"""What the check draws for models that do not take everything: what they refuse is left out, and said."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn.errors import DynamicAxisError, ExportError, VerificationError
from deploy_rnn.export import export_bundle, export_onnx, verify
from deploy_rnn.runtime import open_session

SHAPES = {"x": {0: "B", 1: "T"}, "given": {0: "B"}}


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, batch_first=True)

    def pack(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=x.size(1)
        )
        return output


class Clamped(Encoder):
    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.pack(x, given.clamp(min=1))


class Halved(Encoder):
    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.pack(x[:, ::2], (given + 1) // 2)


class Last(Encoder):
    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output[torch.arange(x.size(0)), given - 1]


class Shares(Encoder):
    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.pack(x, given * x.size(1))


class Narrow(Encoder):
    """Takes four steps at least."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        output: Tensor = self.rnn(x)[0]
        return output


def answers(path: Path, *tensors: Tensor) -> np.ndarray:
    session = open_session(path)
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, [tensor.numpy() for tensor in tensors], strict=True))
    output: np.ndarray = session.run(None, feeds)[0]
    return output


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (Clamped(), torch.tensor([8, 3, 5])),
        (Halved(), torch.tensor([8, 3, 5])),
        (Last(), torch.tensor([8, 3, 5])),
        (Shares(), torch.tensor([0.25, 1.0, 0.5])),
    ],
)
def test_numbers_of_rows_that_are_not_plain_lengths(
    model: nn.Module, given: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    report = export_onnx(
        model, (torch.randn(3, 8, 4), given), path, form="scan", dynamic_shapes=SHAPES
    )
    cases = {comparison.case for comparison in report.comparisons}
    for sizes in ("B=1, T=3", "B=3, T=7", "B=7, T=1", "T=200"):
        assert any(case.endswith(sizes) for case in cases)
    x = torch.randn(2, 16, 4)
    given = torch.tensor([1.0, 0.5]) if given.is_floating_point() else torch.tensor([16, 5])
    with torch.no_grad():
        expected = model.eval()(x, given)
    np.testing.assert_allclose(answers(path, x, given), expected, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:axis 1 of `x`, T, can have a size of 4 or more only:UserWarning"
)
def test_a_size_that_the_model_refuses_is_left_out_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    x = torch.randn(2, 16, 4)
    export_onnx(Narrow(), x, path, form="scan", dynamic_shapes={"x": {0: "B", 1: "T"}})
    # A file without any mention of the limit.
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    report = verify(path, Narrow(), x, atol=10)
    refused = [reason for reason in report.left_out if reason.startswith("the model refuses T=")]
    assert [reason.partition(":")[0] for reason in refused] == [
        "the model refuses T=3",
        "the model refuses T=1",
    ]
    for reason in refused:
        assert "test_drawing.py:" in reason
        assert "`x = self.conv(x.transpose(1, 2)).transpose(1, 2)`: RuntimeError: " in reason
    cases = {comparison.case for comparison in report.comparisons}
    # The batch that went with it is not lost, and another number of steps takes its place.
    assert {"random, B=1, T=6", "random, B=3, T=7", "random, B=7, T=4"} <= cases


def test_a_case_that_pytorch_takes_and_the_file_refuses_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    x = torch.randn(2, 6, 4)
    report = export_onnx(nn.GRU(4, 6, batch_first=True), x, path, form="scan")
    assert report.left_out == ()
    model = onnx.load(path)
    # Nine steps of three rows, whatever comes in, for what has the sizes of no example.
    model.graph.node.insert(
        0, onnx.helper.make_node("Reshape", ["input", "example_shape"], ["fixed"])
    )
    model.graph.initializer.append(
        numpy_helper.from_array(np.array([2, 6, 4], np.int64), "example_shape")
    )
    for node in list(model.graph.node)[1:]:
        for number, name in enumerate(node.input):
            if name == "input":
                node.input[number] = "fixed"
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"a.onnx fails on random, B=1, T=3"):
        verify(path, nn.GRU(4, 6, batch_first=True), x)


class OneSize(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and x.size(1) != 6:
            raise ValueError("six steps")
        output: Tensor = self.rnn(x)[0]
        return output


def test_an_axis_that_the_model_takes_at_one_size_is_not_dynamic(tmp_path: Path) -> None:
    x = torch.randn(2, 6, 4)
    with pytest.raises(
        DynamicAxisError,
        match=r"axis T cannot be dynamic: T other than 6: .*six steps",
    ):
        export_onnx(OneSize(), x, tmp_path / "a.onnx", form="scan", dynamic_shapes={"x": {1: "T"}})
    assert not list(tmp_path.iterdir())


class InPlace(Encoder):
    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        x.mul_(2)
        x[:, 0] = 0
        given.clamp_(min=1)
        return self.pack(x, given)


def test_a_model_that_changes_its_inputs_gets_copies(tmp_path: Path) -> None:
    model, path = InPlace(), tmp_path / "a.onnx"
    x, given = torch.randn(3, 8, 4), torch.tensor([8, 3, 5])
    args: Any = (x.clone(), given.clone())
    export_onnx(model, args, path, form="scan", dynamic_shapes=SHAPES)
    verify(path, model, args)
    torch.testing.assert_close(args, (x, given), rtol=0, atol=0)
    with torch.no_grad():
        expected = model.eval()(x.clone(), given.clone())
    np.testing.assert_allclose(answers(path, x, given), expected, atol=1e-5)
    weights = onnx.load(path)
    for tensor in weights.graph.initializer:
        if tensor.name.startswith("rnn") and "weight_hh" in tensor.name:
            tensor.CopyFrom(
                numpy_helper.from_array(1.1 * numpy_helper.to_array(tensor), tensor.name)
            )
    onnx.save(weights, path)
    with pytest.raises(VerificationError):
        verify(path, model, args)


def test_the_buckets_of_lengths_that_are_clamped(tmp_path: Path) -> None:
    args = torch.randn(3, 8, 4), torch.tensor([8, 3, 5])
    manifest = export_bundle(
        Clamped(), args, tmp_path / "m", forms=["scan"], buckets=[4], dynamic_shapes=SHAPES
    )
    assert [graph.steps for graph in manifest.graphs] == [None, 4]
