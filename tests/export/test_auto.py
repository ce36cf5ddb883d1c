"""`form="auto"`, and the limit on the number of nodes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.export import auto, export_onnx
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.timing import Timing


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The forms that are measured; each is run, and is faster than the one before."""
    names: list[str] = []

    def compare(runs: Mapping[str, Callable[[], object]], **_: float) -> dict[str, Timing]:
        timings = {}
        for number, (name, run) in enumerate(runs.items()):
            run()
            names.append(name)
            seconds = 0.001 * (len(runs) - number)
            timings[name] = Timing(seconds, seconds, seconds)
        return timings

    monkeypatch.setattr(auto, "compare", compare)
    return names


def test_auto_is_the_default_and_fixes_no_axis(tmp_path: Path, timed: list[str]) -> None:
    report = export_onnx(nn.GRU(4, 6), torch.randn(3, 2, 4), tmp_path / "gru.onnx")
    assert report.input("input").shape == ("T", "B", 4)
    assert timed == ["scan", "native"]
    assert report.form == "native"
    assert report.forms["native"] == 1.0
    assert report.forms["unrolled"] == auto.FIXES_STEPS
    assert "  unrolled: not measured: it fixes the number of steps, which is dynamic here" in str(
        report
    )
    assert "  native: 1.00 ms" in str(report)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output


@pytest.mark.parametrize("streaming", [False, True])
def test_nor_does_it_in_a_model(streaming: bool, tmp_path: Path, timed: list[str]) -> None:
    report = export_onnx(
        Tagger(), torch.randn(2, 3, 4), tmp_path / "tagger.onnx", streaming=streaming
    )
    assert report.input("x").shape == ("B", "T", 4)
    assert timed == ["scan", "native"]


@pytest.mark.parametrize("dynamic_shapes", [{}, {"input": {1: "N"}}])
def test_unrolled_takes_part_where_the_caller_fixes_the_steps(
    dynamic_shapes: dict[str, Any], tmp_path: Path, timed: list[str]
) -> None:
    report = export_onnx(
        nn.GRU(4, 6), torch.randn(3, 2, 4), tmp_path / "gru.onnx", dynamic_shapes=dynamic_shapes
    )
    assert timed == ["unrolled", "scan", "native"]
    assert report.input("input").shape == (3, "N" if dynamic_shapes else 2, 4)


class FixedSteps(nn.Module):
    """Has a weight for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 6)
        self.scale = nn.Parameter(torch.rand(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x * self.scale)[0]
        return output


def test_and_where_the_model_does_which_is_no_secret(tmp_path: Path, timed: list[str]) -> None:
    with pytest.warns(UserWarning, match="an axis is fixed: the recurrent layers have steps"):
        report = export_onnx(FixedSteps(), torch.randn(3, 2, 4), tmp_path / "fixed.onnx")
    assert report.input("x").shape == (3, "B", 4)
    assert timed == ["unrolled", "scan", "native"]


def test_an_axis_that_cannot_be_dynamic_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, dynamic_time: bool, **options: Any) -> None:
        raise DynamicAxisError(f"an axis is fixed, {dynamic_time}.")

    monkeypatch.setattr(CapturedModel, "of", refuse)
    x = torch.randn(3, 2, 4)
    way_out = "form='unrolled' keeps the example's number of steps"
    with pytest.raises(DynamicAxisError, match=f"fixed, True. Without .*{way_out}"):
        export_onnx(nn.GRU(4, 6), x, tmp_path / "gru.onnx")
    for options in ({"form": "unrolled"}, {"dynamic_shapes": {"input": {0: "T"}}}):
        with pytest.raises(DynamicAxisError) as raised:
            export_onnx(nn.GRU(4, 6), x, tmp_path / "gru.onnx", **options)
        assert way_out not in str(raised.value)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_auto_reports_why_a_form_does_not_fit(tmp_path: Path) -> None:
    layer = nn.LSTM(4, 6, proj_size=3)
    axes = {"input": {0: "T", 1: "B"}}
    report = export_onnx(
        layer, torch.randn(3, 2, 4), tmp_path / "lstm.onnx", form="auto", dynamic_shapes=axes
    )
    assert report.form == "scan"
    assert report.forms["unrolled"] == auto.FIXES_STEPS
    assert "ONNX's LSTM operator has no projection (`proj_size`)" in str(report.forms["native"])


def test_a_file_that_would_be_too_large_is_refused_beforehand(tmp_path: Path) -> None:
    layer = nn.LSTM(4, 6, 2, bidirectional=True)
    with pytest.raises(ExportError) as raised:
        export_onnx(layer, torch.randn(10_000, 1, 4), tmp_path / "lstm.onnx", form="unrolled")
    assert str(raised.value) == (
        "form='unrolled' would write 10,000 steps as 400,000 nodes, 52 MB besides the weights, which onnxruntime "
        "takes about 389 s to open; the limit is `max_nodes` (=20,000). Use form='scan' or form='native', or raise the "
        "limit."
    )


@pytest.mark.parametrize("lengths", [None, torch.tensor([7, 3])])
def test_the_predicted_size_is_that_of_the_file(
    lengths: torch.Tensor | None, tmp_path: Path
) -> None:
    layer = nn.GRU(4, 6, 2, bidirectional=True)
    kwargs = {} if lengths is None else {"lengths": lengths}
    node_counts = []
    for steps in (7, 8):
        x = torch.randn(steps, 2, 4)
        node_counts.append(
            export_onnx(layer, x, tmp_path / "gru.onnx", kwargs=kwargs, form="unrolled").nodes
        )
    per_step = node_counts[1] - node_counts[0]
    with pytest.raises(ExportError, match=f"as {7 * per_step:,} nodes"):
        export_onnx(
            layer,
            torch.randn(7, 2, 4),
            tmp_path / "gru.onnx",
            kwargs=kwargs,
            max_nodes=7 * per_step - 1,
            form="unrolled",
        )
    export_onnx(
        layer,
        torch.randn(7, 2, 4),
        tmp_path / "gru.onnx",
        kwargs=kwargs,
        max_nodes=7 * per_step,
        form="unrolled",
    )
