"""A model that branches on a size: the file says for which sizes it is, and is checked up to the last of them."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_rnn.bundle import Manifest
from deploy_rnn.errors import DynamicAxisError, InputError, VerificationError
from deploy_rnn.export import export_bundle, export_onnx, verify
from deploy_rnn.export.onnx_file import OnnxFile
from deploy_rnn.serving import Engine
from deploy_rnn.tensor_spec import SizeRange


class Branching(nn.Module):
    """Doubles its outputs beyond a number of steps, and beyond a number of rows."""

    def __init__(self, *, most_steps: int = 10**6, most_rows: int = 10**6, least_rows: int = 0):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.most_steps = most_steps
        self.most_rows = most_rows
        self.least_rows = least_rows

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        if self.most_steps < 10**6 and x.size(1) > self.most_steps:
            output = output * 2
        if self.most_rows < 10**6 and x.size(0) > self.most_rows:
            output = output * 3
        if self.least_rows and x.size(0) < self.least_rows:
            output = output * 5
        return output


def export(model: nn.Module, args: Any, path: Path, **options: Any) -> Any:
    """export_onnx in form scan; what it warned of is in `messages`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = export_onnx(model, args, path, form="scan", **options)
    return report, [str(warning.message) for warning in caught]


def check_answers(model: nn.Module, engine: Engine, *shape: int) -> None:
    x = torch.randn(shape)
    with torch.no_grad():
        expected = model(x)
    np.testing.assert_allclose(engine.run({"x": x.numpy()})["output"], expected, atol=1e-5)


def test_a_file_is_for_the_sizes_of_its_branch(tmp_path: Path) -> None:
    model = Branching(most_steps=20).eval()
    path = tmp_path / "m.onnx"
    report, messages = export(model, (torch.randn(2, 6, 3),), path)
    assert report.ranges == {"T": SizeRange(1, 20)}
    (message,) = messages
    assert message == (
        "axis 1 of `x`, T, can have a size of 1 to 20 only: with others the model computes something else, or fails, "
        "and the engine of deploy-rnn refuses them, while another runtime may not."
    )
    # The last size is tried, and no other is drawn.
    assert "random, B=2, T=20" in {comparison.case for comparison in report.comparisons}
    assert "T other than 1 to 20: the file is for these sizes only" in report.left_out
    assert "  sizes   T: 1 to 20" in str(report)
    assert "T: 1 to 20" in report.to_html()
    assert json.loads(report.to_json())["ranges"] == {"T": [1, 20]}
    assert "  sizes    T: 1 to 20" in str(OnnxFile.read(path))
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(properties["deploy_rnn.ranges"]) == {"T": [1, 20]}
    engine = Engine(path)
    check_answers(model, engine, 3, 20, 3)
    with pytest.raises(InputError, match="axis 1 of `x`, T, has size 21; the model takes 1 to 20"):
        engine.run({"x": np.zeros((1, 21, 3), np.float32)})


def test_a_model_without_branches_has_no_ranges(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report, messages = export(Branching(), (torch.randn(2, 6, 3),), path)
    assert report.ranges == {}
    assert messages == []
    assert "deploy_rnn.ranges" not in {entry.key for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize(
    ("limits", "rows", "sizes", "wrong"),
    [
        ({"most_rows": 5}, 2, SizeRange(1, 5), 6),
        ({"most_rows": 5}, 9, SizeRange(6, None), 5),
        ({"least_rows": 2}, 3, SizeRange(2, None), 1),
        ({"least_rows": 3, "most_rows": 8}, 4, SizeRange(3, 8), 2),
    ],
)
def test_rows_have_ranges_too(
    limits: dict[str, int], rows: int, sizes: SizeRange, wrong: int, tmp_path: Path
) -> None:
    model = Branching(**limits).eval()
    path = tmp_path / "m.onnx"
    report, _ = export(model, (torch.randn(rows, 6, 3),), path)
    assert report.ranges == {"B": sizes}
    engine = Engine(path)
    check_answers(model, engine, sizes.least, 9, 3)
    with pytest.raises(
        InputError, match=f"axis 0 of `x`, B, has size {wrong}; the model takes {sizes}"
    ):
        engine.run({"x": np.zeros((wrong, 6, 3), np.float32)})


def test_the_range_of_a_dim_is_that_of_the_file(tmp_path: Path) -> None:
    steps = torch.export.Dim("T", min=3, max=30)
    path = tmp_path / "m.onnx"
    model = Branching().eval()
    report, messages = export(
        model, (torch.randn(2, 6, 3),), path, dynamic_shapes={"x": {0: "B", 1: steps}}
    )
    assert report.ranges == {"T": SizeRange(3, 30)}
    assert messages == []  # who asks for a range knows it
    engine = Engine(path)
    check_answers(model, engine, 2, 30, 3)
    for wrong in (2, 31):
        with pytest.raises(InputError, match=f"has size {wrong}; the model takes 3 to 30"):
            engine.run({"x": np.zeros((1, wrong, 3), np.float32)})


class Strided(nn.Module):
    """A convolution before a branch on the steps that are left."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 5, stride=2)
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        output: Tensor = self.rnn(x)[0].mean(1)
        return output * 2 if x.size(1) > 20 else output


def test_a_range_that_is_derived(tmp_path: Path) -> None:
    model = Strided().eval()
    path = tmp_path / "m.onnx"
    shapes = {"x": {0: "B", 1: "T"}}
    report, _ = export(model, (torch.randn(2, 16, 3),), path, dynamic_shapes=shapes)
    assert report.ranges == {"T": SizeRange(5, 44)}
    engine = Engine(path)
    for steps in (5, 44):
        check_answers(model, engine, 2, steps, 3)
    for wrong in (4, 45):
        with pytest.raises(InputError, match="the model takes 5 to 44"):
            engine.run({"x": np.zeros((1, wrong, 3), np.float32)})


class Reflecting(nn.Module):
    """Reflects what a convolution with a stride leaves, if that is long enough, and fills it with zeros before if not.

    The steps that are left are rounded up with a float, which PyTorch does not resolve.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 2, stride=2)
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        x = F.pad(x, (0, 2 * math.ceil(x.size(2) / 2) - x.size(2)))
        x = self.conv(x)
        missing = 0
        if x.size(2) <= 6:
            missing = 7 - x.size(2)
            x = F.pad(x, (0, missing))
        x = F.pad(x, (6, 0), mode="reflect")
        output: Tensor = self.rnn(x[..., : x.size(2) - missing].transpose(1, 2))[0]
        return output


def test_a_least_size_that_pytorch_does_not_resolve(tmp_path: Path) -> None:
    model = Reflecting().eval()
    path = tmp_path / "m.onnx"
    report, (message,) = export(model, (torch.randn(2, 20, 3),), path)
    assert report.ranges == {"T": SizeRange(13)}
    assert "axis 1 of `x`, T, can have a size of 13 or more only" in message
    engine = Engine(path)
    for steps in (13, 31):
        check_answers(model, engine, 2, steps, 3)
    with pytest.raises(InputError, match="T, has size 12; the model takes 13 or more"):
        engine.run({"x": np.zeros((1, 12, 3), np.float32)})


def test_a_dynamic_axis_has_run_at_two_sizes(tmp_path: Path) -> None:
    report, _ = export(Branching(), (torch.randn(3, 6, 3),), tmp_path / "m.onnx", sizes=(3,))
    assert {"random, B=4, T=6"} <= {comparison.case for comparison in report.comparisons}


class Stateful(nn.Module):
    """Keeps a first state of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.register_buffer("hidden", torch.ones(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x, self.hidden)[0]
        return output


def test_an_axis_that_the_model_fixes_is_not_dynamic(tmp_path: Path) -> None:
    """Only its own size is asked for, and that says nothing of others."""
    with pytest.raises(
        DynamicAxisError, match=r"axis B cannot be dynamic: B other than 1: .* Leave it out"
    ):
        export(
            Stateful(),
            (torch.randn(1, 6, 3),),
            tmp_path / "b.onnx",
            dynamic_shapes={"x": {0: "B"}},
            sizes=(1,),
        )


class Deciding(nn.Module):
    """Doubles its outputs where a function of the input's sizes says so."""

    def __init__(self, decide: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output * 2 if self.decide(x.size(0), x.size(1)) else output


@pytest.mark.parametrize(
    ("decide", "condition"),
    [
        (lambda rows, steps: steps % 2 == 0, "(T % 2) != 0"),
        (lambda rows, steps: steps % 4 == 3 and steps > 8, "(T % 4) != 3"),
        (lambda rows, steps: steps > 3 * rows, "T <= 3*B"),
        (lambda rows, steps: rows * steps > 1000, "T*B <= 1000"),
    ],
)
def test_a_branch_that_is_no_range_is_found(
    decide: Callable[[int, int], bool], condition: str, tmp_path: Path
) -> None:
    """The example and the sizes of the check are all on one side of it."""
    with pytest.raises(VerificationError) as raised:
        export_onnx(
            Deciding(decide).eval(),
            torch.randn(3, 5, 3),
            tmp_path / "m.onnx",
            form="scan",
            sizes=(3, 5),
        )
    assert f"the file has the side where {condition}: let it compute" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_branch_with_another_shape_is_named(tmp_path: Path) -> None:
    class LongerAxis(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.rnn(x)[0]
            return output.sum(1) if x.size(1) > x.size(0) else output.sum(0)

    with pytest.raises(VerificationError, match=r"PyTorch gives .* the side where B < T: let it"):
        export_onnx(LongerAxis(), torch.randn(2, 6, 3), tmp_path / "m.onnx", form="scan")


def test_a_branch_without_a_difference_is_allowed(tmp_path: Path) -> None:
    """As in a model that pads to a multiple and cuts again, or one that refuses some sizes."""

    def refuse(rows: int, steps: int) -> bool:
        if steps % 4:
            raise ValueError("multiples of 4, please")
        return rows % 2 == 0 and steps == 0

    path = tmp_path / "m.onnx"
    model = Deciding(refuse).eval()
    report, messages = export(model, (torch.randn(2, 8, 3),), path, sizes=(4, 8))
    assert (report.ranges, messages) == ({}, [])
    assert "random, B=1, T=8" in {comparison.case for comparison in report.comparisons}
    check_answers(model, Engine(path), 3, 12, 3)


def test_verify_keeps_to_the_ranges_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = Branching(most_steps=5).eval()
    x = torch.randn(2, 4, 3)
    export(model, (x,), path)
    report = verify(path, model, (x,), sizes=(1, 3, 7, 50))
    cases = {comparison.case for comparison in report.comparisons}
    assert "random, B=2, T=5" in cases
    assert not any("T=7" in case or "T=50" in case for case in cases)


def test_a_bundle_has_the_ranges_of_each_graph(tmp_path: Path) -> None:
    model = Branching(most_steps=20, most_rows=8).eval()
    with pytest.warns(UserWarning, match="can have a size of"):
        manifest = export_bundle(
            model, (torch.randn(2, 6, 3),), tmp_path / "m", forms=["scan"], buckets=[10, 30]
        )
    rows = SizeRange(1, 8)
    assert [graph.ranges for graph in manifest.graphs] == [
        {"T": SizeRange(1, 20), "B": rows},
        {"T": SizeRange(1, 20), "B": rows},
        {"T": SizeRange(30, 30), "B": rows},
    ]
    assert Manifest.read(tmp_path / "m") == manifest
    assert "    sizes T: 1 to 20" in str(manifest)
    engine = Engine(tmp_path / "m")
    for steps in (1, 9, 10, 20, 30):
        check_answers(model, engine, 3, steps, 3)
    for wrong in (21, 29, 31):
        with pytest.raises(
            InputError, match=f"axis 1 of `x`, T, has size {wrong}; the model takes"
        ):
            engine.run({"x": np.zeros((1, wrong, 3), np.float32)})
    with pytest.raises(InputError, match="axis 0 of `x`, B, has size 9; the model takes 1 to 8"):
        engine.run({"x": np.zeros((9, 10, 3), np.float32)})


def test_a_damaged_range(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export(Branching(most_steps=5), (torch.randn(2, 4, 3),), path)
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == "deploy_rnn.ranges":
            entry.value = '{"T": [1, "many"]}'
    onnx.save(model, path)
    with pytest.raises(ValueError, match="metadata of deploy-rnn"):
        OnnxFile.read(path)
