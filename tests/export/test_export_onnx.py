"""`export_onnx`: names, axes, whole models, errors, and what is left on disk."""

import json
import math
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from deploy_rnn import RNN
from deploy_rnn.errors import (
    ConversionError,
    DynamicAxisError,
    ExportError,
    VerificationError,
)
from deploy_rnn.export import export_onnx
from deploy_rnn.export.capture.capture import _name_axes
from deploy_rnn.runtime import CPU, CUDA, TensorSpec


def specs(*rows: tuple[str, str, list[int | str]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in rows)


class Tagger(nn.Module):
    """Embedding -> RNN -> Linear."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = nn.RNN(6, 9, 2, batch_first=batch_first, bidirectional=True, dropout=0.5)
        self.score = nn.Linear(18, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.score(self.rnn(self.embed(tokens))[0])
        return scores


def test_a_bare_layer_has_the_names_of_its_arguments_and_an_open_batch(tmp_path: Path) -> None:
    layer = nn.RNN(5, 7, 2, bidirectional=True)
    path = tmp_path / "rnn.onnx"
    report = export_onnx(layer, (torch.randn(4, 2, 5),), path, form="unrolled")
    assert report.inputs == specs(("input", "float32", [4, "B", 5]))
    assert report.outputs == specs(
        ("output", "float32", [4, "B", 14]), ("h_n", "float32", [4, "B", 7])
    )
    report = export_onnx(layer, (torch.randn(4, 2, 5), torch.randn(4, 2, 7)), path, form="unrolled")
    assert report.inputs == specs(("input", "float32", [4, "B", 5]), ("h0", "float32", [4, "B", 7]))
    assert report.path == str(path)
    assert report.bytes == path.stat().st_size
    assert report.form == "unrolled"
    assert {comparison.case for comparison in report.comparisons} == {
        "example", "random, B=1", "random, B=3", "random, B=7",
        "random, B=1, without h0", "random, B=3, without h0", "random, B=7, without h0",
    }  # fmt: skip


def test_a_bare_lstm_has_two_states(tmp_path: Path) -> None:
    layer = nn.LSTM(5, 7, 2, batch_first=True)
    path = tmp_path / "lstm.onnx"
    x = torch.randn(3, 4, 5)
    states = (torch.randn(2, 3, 7), torch.randn(2, 3, 7))
    outputs = specs(
        ("output", "float32", ["B", 4, 7]),
        ("h_n", "float32", [2, "B", 7]),
        ("c_n", "float32", [2, "B", 7]),
    )
    assert export_onnx(layer, (x,), path, form="unrolled").outputs == outputs
    report = export_onnx(layer, (x, states), path, form="unrolled")
    assert report.outputs == outputs
    assert report.inputs == specs(
        ("input", "float32", ["B", 4, 5]),
        ("h0", "float32", [2, "B", 7]),
        ("c0", "float32", [2, "B", 7]),
    )
    for shapes in (
        {"input": {0: "N"}},
        {"input": {0: "N"}, "c0": {1: "N"}},
        ({0: "N"}, ({1: "N"}, {1: "N"})),
    ):
        report = export_onnx(layer, (x, states), path, dynamic_shapes=shapes, form="unrolled")
        assert [spec.shape for spec in report.inputs] == [("N", 4, 5), (2, "N", 7), (2, "N", 7)]
    report = export_onnx(layer, (x, states), path, dynamic_shapes={}, form="unrolled")
    assert [spec.shape for spec in report.inputs] == [(3, 4, 5), (2, 3, 7), (2, 3, 7)]


def test_every_case_is_run_with_optimisations_off_and_on(tmp_path: Path) -> None:
    report = export_onnx(RNN(5, 7), torch.randn(4, 2, 5), tmp_path / "rnn.onnx", form="unrolled")
    runs = Counter((comparison.provider, comparison.optimized) for comparison in report.comparisons)
    assert runs[CPU, False] == runs[CPU, True] == 4 * 2  # cases, outputs
    assert report.providers[CPU] == "checked"
    if not torch.cuda.is_available():
        assert report.providers[CUDA] == "not checked: there is no CUDA device."
    assert all(comparison.ok for comparison in report.comparisons)
    assert not report.failures


def test_batch_first_and_unbatched_layers(tmp_path: Path) -> None:
    layer = nn.RNN(5, 7, batch_first=True, bidirectional=True)
    report = export_onnx(layer, (torch.randn(2, 4, 5),), tmp_path / "rnn.onnx", form="unrolled")
    assert report.inputs == specs(("input", "float32", ["B", 4, 5]))
    assert report.outputs == specs(
        ("output", "float32", ["B", 4, 14]), ("h_n", "float32", [2, "B", 7])
    )
    report = export_onnx(
        layer, (torch.randn(4, 5), torch.randn(2, 7)), tmp_path / "rnn.onnx", form="unrolled"
    )
    assert report.inputs == specs(("input", "float32", [4, 5]), ("h0", "float32", [2, 7]))
    assert report.outputs == specs(("output", "float32", [4, 14]), ("h_n", "float32", [2, 7]))


def test_an_example_of_batch_one_and_one_step_freezes_nothing(tmp_path: Path) -> None:
    report = export_onnx(
        nn.RNN(5, 7, 2, bidirectional=True),
        torch.randn(1, 1, 5),
        tmp_path / "rnn.onnx",
        form="unrolled",
    )
    assert report.inputs == specs(("input", "float32", [1, "B", 5]))
    report = export_onnx(
        Tagger(), torch.randint(20, (1, 6)), tmp_path / "tagger.onnx", form="unrolled"
    )
    assert report.inputs == specs(("tokens", "int64", ["B", 6]))


def test_a_whole_model_with_an_open_batch(tmp_path: Path) -> None:
    model = Tagger()
    report = export_onnx(
        model, (torch.randint(20, (3, 6)),), tmp_path / "tagger.onnx", form="unrolled"
    )
    assert report.inputs == specs(("tokens", "int64", ["B", 6]))
    assert report.outputs == specs(("output", "float32", ["B", 6, 4]))
    assert model.training  # exported as it evaluates, left as it was
    assert type(model.rnn) is nn.RNN


class Elaborate(nn.Module):
    """Two stacks, one of them called twice, inputs in a dict, a keyword, two outputs, the batch in second place."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.RNN(5, 6, bidirectional=True)
        self.two = nn.RNN(12, 12, nonlinearity="relu", bias=False)

    def forward(self, inputs: dict[str, Tensor], *, scale: Tensor) -> tuple[Tensor, Tensor]:
        once = self.two(self.one(inputs["a"] + inputs["b"])[0])[0]
        twice, h_n = self.two(once, self.two(once)[1])
        return twice * scale, h_n


def test_several_stacks_nested_inputs_and_keywords(tmp_path: Path) -> None:
    args = ({"a": torch.randn(4, 2, 5), "b": torch.randn(4, 2, 5)},)
    report = export_onnx(
        Elaborate(),
        args,
        tmp_path / "model.onnx",
        kwargs={"scale": torch.randn(2, 12)},
        output_names=["y", "state"],
        form="unrolled",
    )
    assert report.inputs == specs(
        ("inputs_a", "float32", [4, "B", 5]),
        ("inputs_b", "float32", [4, "B", 5]),
        ("scale", "float32", ["B", 12]),
    )
    assert report.outputs == specs(
        ("y", "float32", [4, "B", 12]), ("state", "float32", [1, "B", 12])
    )


class FixedBatch(nn.Module):
    """A batch of two, written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x.view(4, 2, 5))[0]
        return output


def test_an_axis_that_the_model_fixes_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no axis of the inputs is that by itself"):
        report = export_onnx(
            FixedBatch(), torch.randn(4, 2, 5), tmp_path / "fixed.onnx", form="unrolled"
        )
    assert report.inputs == specs(("x", "float32", [4, 2, 5]))
    with pytest.raises(
        DynamicAxisError, match="axis 1 of `x` cannot be dynamic: the model fixes it at 2"
    ):
        export_onnx(
            FixedBatch(),
            torch.randn(4, 2, 5),
            tmp_path / "b.onnx",
            dynamic_shapes={"x": {1: "B"}},
            form="unrolled",
        )
    assert not (tmp_path / "b.onnx").exists()


class Crossing(nn.Module):
    """Layers along the rows and along the columns of images (B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.along_rows = nn.GRU(3, 4, batch_first=True)
        self.along_columns = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
        columns = self.along_rows(rows)[0].view(batch, height, width, 4).transpose(1, 2)
        output = self.along_columns(columns.reshape(batch * width, height, 4))[0]
        return output.view(batch, width, height, 3).permute(0, 3, 2, 1)


class Series(nn.Module):
    """Several series (B, N, T, D) in each row, of which each is a row of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        last = self.rnn(x.flatten(0, 1))[1][-1].view(*x.shape[:2], 5)
        return last - last.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("model", "size", "shape"),
    [
        (Crossing(), (2, 3, 5, 6), ["B", 3, "T1", "T"]),
        (Series(), (2, 4, 6, 3), ["B", "B1", "T", 3]),
    ],
)
def test_the_factors_of_a_batch_are_dynamic(
    model: nn.Module, size: tuple[int, ...], shape: list[Any], tmp_path: Path
) -> None:
    report = export_onnx(model, torch.randn(size), tmp_path / "a.onnx", form="native")
    assert report.inputs == specs(("x", "float32", shape))


@pytest.mark.parametrize(
    "shapes", [{"input": {0: "T", 1: "B"}}, ({0: "T", 1: "B"},), {"input": {0: "T"}}]
)
def test_a_dynamic_time_axis_is_refused_by_name(shapes: Any, tmp_path: Path) -> None:
    with pytest.raises(DynamicAxisError) as raised:
        export_onnx(
            nn.RNN(5, 7, bidirectional=True),
            torch.randn(4, 2, 5),
            tmp_path / "a.onnx",
            dynamic_shapes=shapes,
            form="unrolled",
        )
    assert str(raised.value) == (
        "axis 0 ('T') of `input` is the time axis, which form='unrolled' cannot keep dynamic: it writes out every "
        "step. Leave it out of `dynamic_shapes`, or use form='scan' or form='native'."
    )
    assert not list(tmp_path.iterdir())


def test_a_dynamic_time_axis_of_a_whole_model_is_refused_by_name(tmp_path: Path) -> None:
    shapes = {"tokens": {0: "B", 1: "length"}}
    with pytest.raises(DynamicAxisError, match=r"axis 1 \('length'\) of `tokens` is the time axis"):
        export_onnx(
            Tagger(),
            torch.randint(20, (2, 6)),
            tmp_path / "a.onnx",
            dynamic_shapes=shapes,
            form="unrolled",
        )


def test_dynamic_shapes_as_torch_takes_them(tmp_path: Path) -> None:
    layer = nn.RNN(5, 7)
    x = torch.randn(4, 2, 5)
    h0 = torch.randn(1, 2, 7)
    path = tmp_path / "a.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    for shapes in (
        {"input": {1: batch}, "hx": {1: batch}},
        ({1: batch}, {1: batch}),
        {"input": {1: "batch"}},
    ):
        report = export_onnx(layer, (x, h0), path, dynamic_shapes=shapes, form="unrolled")
        assert report.inputs == specs(
            ("input", "float32", [4, "batch", 5]), ("h0", "float32", [1, "batch", 7])
        )
    assert export_onnx(layer, (x, h0), path, dynamic_shapes={}, form="unrolled").inputs == specs(
        ("input", "float32", [4, 2, 5]), ("h0", "float32", [1, 2, 7])
    )
    with pytest.raises(
        DynamicAxisError, match="axis 2 of `input` cannot be dynamic: the model fixes it at 5"
    ):
        export_onnx(layer, (x,), path, dynamic_shapes={"input": {2: "I"}}, form="unrolled")


def test_an_axis_may_be_counted_from_the_end_and_axes_may_be_a_list(tmp_path: Path) -> None:
    layer = nn.RNN(5, 7)
    x = torch.randn(4, 2, 5)
    h0 = torch.randn(1, 2, 7)
    static = torch.export.Dim.STATIC
    for shapes in (
        {"input": {-2: "N"}},
        {"input": [static, "N", static]},
        {"input": (None, "N", 5), "h0": {-2: "N"}},
    ):
        report = export_onnx(
            layer, (x, h0), tmp_path / "a.onnx", dynamic_shapes=shapes, form="unrolled"
        )
        assert report.inputs == specs(
            ("input", "float32", [4, "N", 5]), ("h0", "float32", [1, "N", 7])
        )
    report = export_onnx(
        Tagger(),
        torch.randint(20, (2, 6)),
        tmp_path / "a.onnx",
        dynamic_shapes=({-2: "N"},),
        form="unrolled",
    )
    assert report.inputs == specs(("tokens", "int64", ["N", 6]))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": {1: "B"}}, "`dynamic_shapes` names `x`; the arguments are input."),
        ({"input": {3: "B"}}, "`dynamic_shapes` has axis 3 for `input`, which has 3 axes."),
        (
            {"input": "B"},
            "`dynamic_shapes` has 'B' for `input`; give {axis: name}, such as {0: 'B'}.",
        ),
    ],
)
def test_dynamic_shapes_that_do_not_fit_are_refused(
    shapes: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as raised:
        export_onnx(
            nn.RNN(5, 7),
            torch.randn(4, 2, 5),
            tmp_path / "a.onnx",
            dynamic_shapes=shapes,
            form="unrolled",
        )
    assert str(raised.value) == message


class TwoInputs(nn.Module):
    """An optional tensor, an option that is not a tensor, and names that a graph might use inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 7)
        self.output = nn.Parameter(torch.randn(7))

    def forward(
        self, output: Tensor, h: Tensor | None = None, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        self.rnn.flatten_parameters()
        y, h_n = self.rnn(output, h)
        return y * scale + self.output, h_n


@pytest.mark.parametrize(
    ("args", "kwargs", "names"),
    [
        (("x", None), None, ["output"]),
        (("x", None, 2.5), None, ["output"]),
        ((), {"scale": 3.0, "h": "h", "output": "x"}, ["output", "h"]),
        (("x", {"h": "h"}), None, ["output", "h"]),
        (("x",), {"scale": 3.0}, ["output"]),
    ],
)
def test_arguments_as_torch_onnx_export_takes_them(
    args: Any, kwargs: Any, names: list[str], tmp_path: Path
) -> None:
    tensors = {"x": torch.randn(4, 2, 5), "h": torch.randn(1, 2, 7)}
    args, kwargs = torch.utils._pytree.tree_map(
        lambda leaf: tensors.get(leaf, leaf), (args, kwargs)
    )
    report = export_onnx(TwoInputs(), args, tmp_path / "a.onnx", kwargs=kwargs, form="unrolled")
    assert [spec.name for spec in report.inputs] == names
    assert {spec.shape[1] for spec in report.inputs} == {"B"}
    assert [spec.name for spec in report.outputs] == ["output_0", "output_1"]


def test_names_that_collide(tmp_path: Path) -> None:
    x = torch.randn(4, 2, 5)
    path = tmp_path / "a.onnx"
    report = export_onnx(
        nn.RNN(5, 7),
        x,
        path,
        input_names=["rnn0.input"],
        output_names=["weight_hh_l0", "rnn0.h"],
        form="unrolled",
    )
    assert report.inputs[0].name == "rnn0.input"
    assert [spec.name for spec in report.outputs] == ["weight_hh_l0", "rnn0.h"]
    with pytest.raises(ExportError, match=r"`output_names` \(=\['y'\]\) must be a list of 2 names"):
        export_onnx(nn.RNN(5, 7), x, path, output_names=["y"], form="unrolled")
    with pytest.raises(ExportError, match=r"`output_names` \(='yz'\) must be a list of 2 names"):
        export_onnx(nn.RNN(5, 7), x, path, output_names="yz", form="unrolled")
    with pytest.raises(ExportError, match="the name `y` would stand for two"):
        export_onnx(
            nn.RNN(5, 7), x, path, input_names=["y"], output_names=["y", "z"], form="unrolled"
        )


def test_a_model_that_counts_its_calls_is_left_alone(tmp_path: Path) -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(5, 7)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            output: Tensor = self.rnn(x)[0]
            return output

    model = Counting()
    export_onnx(model, torch.randn(4, 2, 5), tmp_path / "a.onnx", form="unrolled")
    assert model.calls == 0


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "a.onnx").symlink_to(tmp_path / "target" / "b.onnx")
    export_onnx(nn.RNN(5, 7), torch.randn(4, 2, 5), tmp_path / "a.onnx", form="unrolled")
    assert (tmp_path / "a.onnx").is_symlink()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["b.onnx"]


def test_parameters_with_gradients_and_other_modes_do_not_matter(tmp_path: Path) -> None:
    layer = nn.RNN(5, 7, 2, dropout=0.9)
    for mode in (True, False):
        export_onnx(layer.train(mode), torch.randn(4, 2, 5), tmp_path / "a.onnx", form="unrolled")
        assert layer.training is mode


class Stepped(nn.Module):
    """Steps a cell in a loop of Python, which it may leave early."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 7)

    def forward(self, input: Tensor) -> Tensor:
        h = input.new_zeros(input.size(1), 7)
        for x in input.unbind(0):
            if x.dim() != 2:
                break
            h = self.cell(x, h)
        return h


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (
            nn.RNN(5, 7),
            {"form": "spiral"},
            ExportError,
            "`form` (='spiral') is unknown; use 'unrolled' or 'scan' or",
        ),
        (
            nn.RNN(5, 7),
            {"opset_version": 12},
            ExportError,
            "`opset_version` (=12) must be a whole number from 13 to 25.",
        ),
        (
            nn.RNN(5, 7),
            {"precision": "int4"},
            ValueError,
            "`precision` (='int4') must be 'float32', 'float64', 'float16' or 'int8'.",
        ),
        (
            nn.RNN(5, 7),
            {"precision": "float64"},
            ExportError,
            "`precision` (='float64') must be 'float32', as the model's weights are, or 'int8' or 'float16'; leave ",
        ),
        (
            Stepped(),
            {},
            ExportError,
            "`h = self.cell(x, h)`: `cell` is a torch.nn.GRUCell, which the model calls 4 times in a loop: PyTorch "
            "writes out the loop, with the number of steps of the example. Put the loop into deploy_rnn.scan, which "
            "stays one, or use torch.nn.GRU.",
        ),
        (nn.RNN(5, 7).half(), {}, ExportError, "has torch.float16 weights"),
        (
            nn.RNNBase("GRU", 5, 7),
            {},
            ExportError,
            "the model itself fails on its arguments: NotImplementedError: ",
        ),
    ],
)
def test_a_model_or_option_that_cannot_be_exported_is_refused(
    model: nn.Module, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    # In the dtype of the weights: of a model that does not run only that is said.
    x = torch.randn(4, 2, 5).to(next(model.parameters()).dtype)
    with pytest.raises(error) as raised:
        export_onnx(model, x, tmp_path / "a.onnx", **options)
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "float32"), (torch.float64, "float64")]
)
def test_naming_the_models_own_precision_changes_nothing(
    dtype: torch.dtype, precision: str, tmp_path: Path
) -> None:
    layer = nn.RNN(5, 7, dtype=dtype)
    x = torch.randn(4, 2, 5, dtype=dtype)
    export_onnx(layer, x, tmp_path / "default.onnx", form="unrolled")
    report = export_onnx(layer, x, tmp_path / "given.onnx", precision=precision, form="unrolled")
    assert (tmp_path / "given.onnx").read_bytes() == (tmp_path / "default.onnx").read_bytes()
    assert report.precision == json.loads(report.to_json())["precision"] == precision
    assert f": unrolled, {precision}, " in str(report)
    assert f"<td>{precision}</td>" in report.to_html()


class HalfOutput(nn.Module):
    """A float32 model whose output is rounded to float16."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0].half()
        return output


def test_an_output_of_another_dtype_is_judged_by_the_precision_of_the_file(tmp_path: Path) -> None:
    report = export_onnx(
        HalfOutput(), torch.randn(4, 2, 5), tmp_path / "half.onnx", form="unrolled"
    )
    assert {spec.dtype for spec in report.outputs} == {"float16"}
    assert all(comparison.allowed >= 1e-5 for comparison in report.comparisons)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_scripted_layer_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(Last(5, 7), torch.jit.script(RNN(7, 7)))
    with pytest.raises(
        ConversionError, match="`1` is scripted, with a recurrent layer in it; convert it first"
    ):
        export_onnx(model, torch.randn(4, 2, 5), tmp_path / "a.onnx", form="unrolled")


class BesideScripted(nn.Module):
    """A recurrent layer between a scripted part and a traced one, both with weights and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.jit.script(nn.LayerNorm(3))
        self.rnn = nn.GRU(3, 4, batch_first=True)
        head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
        self.head = torch.jit.trace(head, torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(self.norm(x))[0][:, -1])
        return y


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_scripted_and_traced_parts_with_weights(tmp_path: Path) -> None:
    model = BesideScripted().eval()
    report = export_onnx(model, torch.randn(2, 5, 3), tmp_path / "a.onnx", form="scan")
    assert report.inputs == specs(("x", "float32", ["B", "T", 3]))
    assert report.outputs == specs(("output", "float32", ["B", 4]))


class Last(RNN):
    """A layer of ours with its own `forward`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h_n: Tensor = super().forward(x)[1]
        return h_n[-1]


def test_a_layer_of_ours_with_its_own_forward(tmp_path: Path) -> None:
    report = export_onnx(Last(5, 7), torch.randn(4, 2, 5), tmp_path / "a.onnx", form="unrolled")
    assert report.inputs == specs(("x", "float32", [4, "B", 5]))
    assert report.outputs == specs(("output", "float32", ["B", 7]))


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(self.layer(x)[0])[0]
        return output


class Scaled(nn.GRU):
    """Computes a weight in each call."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.weight = nn.Parameter(vars(self)["_parameters"].pop("weight_hh_l0").data)

    def forward(self, *args: Any) -> Any:
        self.weight_hh_l0 = self.weight / self.weight.norm()
        return super().forward(*args)


@pytest.mark.parametrize("computed", [False, True])
def test_a_layer_called_twice_has_its_weights_once(computed: bool, tmp_path: Path) -> None:
    """Also where they are computed in the graph, being too large for torch.onnx to compute them beforehand."""
    layer = Scaled(64) if computed else nn.GRU(64, 64)
    export_onnx(Twice(layer), torch.randn(4, 2, 64), tmp_path / "a.onnx", form="unrolled")
    graph = onnx.load(tmp_path / "a.onnx").graph
    floats = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert sum(math.prod(tensor.dims) for tensor in floats) <= sum(
        weight.numel() for weight in layer.parameters()
    )
    assert (
        sum(node.op_type == "Split" and "block" in node.output[0] for node in graph.node)
        == 2 * computed
    )


def test_arguments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"`args` does not fit RNN.forward: too many positional arguments"
    ):
        export_onnx(
            nn.RNN(5, 7), (torch.randn(4, 2, 5), None, None), tmp_path / "a.onnx", form="unrolled"
        )
    with pytest.raises(TypeError, match="`args` is a dict; give keyword arguments as `kwargs`"):
        export_onnx(
            nn.RNN(5, 7), {"input": torch.randn(4, 2, 5)}, tmp_path / "a.onnx", form="unrolled"
        )
    with pytest.raises(TypeError, match=r"`args` has no torch.Tensor in it \(but ndarray\)"):
        export_onnx(
            nn.RNN(5, 7), (torch.randn(4, 2, 5).numpy(),), tmp_path / "a.onnx", form="unrolled"
        )
    with pytest.raises(ExportError, match=r"an example tensor of shape \[4, 0, 5\] is empty"):
        export_onnx(nn.RNN(5, 7), torch.randn(4, 0, 5), tmp_path / "a.onnx", form="unrolled")
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        export_onnx(
            nn.RNN(5, 7), torch.randn(4, 2, 5), tmp_path / "nowhere" / "a.onnx", form="unrolled"
        )
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        export_onnx(nn.RNN(5, 7), torch.randn(4, 2, 5), tmp_path, form="unrolled")


def test_an_error_of_the_model_is_shown_in_one_paragraph(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError,
        match=r"RuntimeError: input.size\(-1\) must be equal to input_size. Expected 5, got 4",
    ):
        export_onnx(nn.RNN(5, 7), torch.randn(4, 2, 4), tmp_path / "a.onnx", form="unrolled")


def test_the_file_is_self_contained_and_says_where_it_came_from(tmp_path: Path) -> None:
    export_onnx(Tagger(), torch.randint(20, (2, 6)), tmp_path / "a.onnx", form="unrolled")
    model = onnx.load(tmp_path / "a.onnx")
    assert model.producer_name == "deploy-rnn"
    assert {entry.domain for entry in model.opset_import} == {""}
    text = (tmp_path / "a.onnx").read_bytes()
    assert (
        os.fsencode(Path.cwd()) not in text
    )  # torch.onnx would leave stack traces with paths in it
    assert b"stack_trace" not in text


def test_exporting_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(
            nn.RNN(5, 7),
            (torch.randn(4, 2, 5), torch.randn(1, 2, 7)),
            tmp_path / "a.onnx",
            form="unrolled",
        )
    assert capfd.readouterr() == ("", "")


def test_an_axis_that_came_out_fixed_is_an_error() -> None:
    """PyTorch raises itself where it notices; this is for where it does not."""
    value = ir.Value(name="x", shape=ir.Shape([4, 2]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([value], [], nodes=[])
    with pytest.raises(
        DynamicAxisError, match="axis 1 of `x` cannot be dynamic: the model fixes it at 2"
    ):
        _name_axes(graph, [{1: "B"}])
    _name_axes(graph, [{1: torch.export.Dim.AUTO}])  # may be fixed


class Branching(nn.Module):
    """Its question about the class of a layer is in no code that `convert` reads."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0 if "torch.nn" in type(self.rnn).__module__ else 1.0
        output: Tensor = self.rnn(x)[0] * scale
        return output


def test_the_file_is_compared_with_the_model_before_its_conversion(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="output"):
        export_onnx(Branching(), torch.randn(4, 2, 5), tmp_path / "a.onnx", form="unrolled")


class Computed(nn.Module):
    """A layer, and a part next to it, whose weights hooks compute."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 6, 3, padding=1)
        self.rnn = nn.GRU(6, 7, batch_first=True)
        compute(self.conv, "weight")
        compute(self.rnn, "weight_hh_l0")

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(self.conv(x.transpose(1, 2)).transpose(1, 2))[0]
        return output


def prune_half(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, amount=0.5)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("compute", "form"),
    [
        (torch.nn.utils.weight_norm, "scan"),
        (torch.nn.utils.weight_norm, "unrolled"),
        (torch.nn.utils.spectral_norm, "scan"),
        (prune_half, "unrolled"),
        (parametrizations.weight_norm, "native"),
        # Of an exponential of a matrix, which ONNX does not have.
        (parametrizations.orthogonal, "native"),
    ],
)
def test_weights_that_are_computed(compute: Any, form: str, tmp_path: Path) -> None:
    model = Computed(compute)
    names = list(model.state_dict())
    report = export_onnx(model, torch.randn(2, 4, 5), tmp_path / "a.onnx", form=form)
    assert report.inputs[0].shape[0] == "B"
    assert list(model.state_dict()) == names


def test_a_model_in_data_parallel_is_exported_without_it(tmp_path: Path) -> None:
    """Its names are those of the module, which the wrapper hides behind `*inputs`."""
    model = nn.DataParallel(nn.GRU(3, 4))
    report = export_onnx(model, (torch.randn(4, 2, 3),), tmp_path / "layer.onnx", form="scan")
    assert str(report.inputs[0]) == "input: float32 [T, B, 3]"
