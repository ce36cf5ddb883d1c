"""`form="auto"`, and the limit on the number of nodes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from deploy_rnn.errors import ExportError
from deploy_rnn.export import auto, export_onnx
from deploy_rnn.timing import Timing


def test_auto_picks_the_fastest_and_reports_the_times_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(runs: Mapping[str, Callable[[], object]], **_: int) -> dict[str, Timing]:
        outputs = [run() for run in runs.values()]
        assert len(outputs) == 3
        return {
            name: Timing(seconds, seconds, seconds)
            for name, seconds in zip(runs, [0.003, 0.001, 0.002], strict=True)
        }

    monkeypatch.setattr(auto, "compare", compare)
    report = export_onnx(nn.GRU(4, 6), torch.randn(3, 2, 4), tmp_path / "gru.onnx", form="auto")
    assert (report.form, report.forms) == ("scan", {"unrolled": 3.0, "scan": 1.0, "native": 2.0})
    assert "  native: 2.00 ms" in str(report)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_auto_reports_why_a_form_does_not_fit(tmp_path: Path) -> None:
    layer = nn.LSTM(4, 6, proj_size=3)
    axes = {"input": {0: "T", 1: "B"}}
    report = export_onnx(
        layer, torch.randn(3, 2, 4), tmp_path / "lstm.onnx", form="auto", dynamic_shapes=axes
    )
    assert report.form == "scan"
    assert "is the time axis, which form='unrolled' cannot keep dynamic" in str(
        report.forms["unrolled"]
    )
    assert "ONNX's LSTM operator has no projection (`proj_size`)" in str(report.forms["native"])


def test_a_file_that_would_be_too_large_is_refused_beforehand(tmp_path: Path) -> None:
    layer = nn.LSTM(4, 6, 2, bidirectional=True)
    with pytest.raises(ExportError) as raised:
        export_onnx(layer, torch.randn(10_000, 1, 4), tmp_path / "lstm.onnx")
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
        node_counts.append(export_onnx(layer, x, tmp_path / "gru.onnx", kwargs=kwargs).nodes)
    per_step = node_counts[1] - node_counts[0]
    with pytest.raises(ExportError, match=f"as {7 * per_step:,} nodes"):
        export_onnx(
            layer,
            torch.randn(7, 2, 4),
            tmp_path / "gru.onnx",
            kwargs=kwargs,
            max_nodes=7 * per_step - 1,
        )
    export_onnx(
        layer, torch.randn(7, 2, 4), tmp_path / "gru.onnx", kwargs=kwargs, max_nodes=7 * per_step
    )
