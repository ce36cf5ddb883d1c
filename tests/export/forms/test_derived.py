"""Cells without a counterpart in ONNX: derived from the PyTorch step, and right."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from deploy_rnn import LSTM, Cell, Recurrent
from deploy_rnn.errors import ExportError
from deploy_rnn.export import export_onnx
from deploy_rnn.export.forms.cells import CELLS
from deploy_rnn.runtime import open_session


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(
    ("cls", "options", "with_states"),
    [
        (nn.GRU, {}, True),
        (nn.GRU, {"bias": False}, False),
        (nn.LSTM, {"proj_size": 2}, True),
        (nn.LSTM, {}, False),
    ],
    ids=str,
)
def test_derived_and_written_by_hand_are_the_same(
    cls: type[nn.RNNBase],
    options: dict[str, Any],
    with_states: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = cls(3, 5, 2, bidirectional=True, dtype=torch.float64, **options)
    h = torch.randn(4, 2, options.get("proj_size", 5), dtype=torch.float64)
    states = (h, torch.randn(4, 2, 5, dtype=torch.float64)) if cls is nn.LSTM else h
    args = (torch.randn(6, 2, 3, dtype=torch.float64), *([states] if with_states else []))
    hand = export_onnx(layer, args, tmp_path / "hand.onnx", form="unrolled")
    for step in list(CELLS):
        monkeypatch.delitem(CELLS, step)
    derived = export_onnx(layer, args, tmp_path / "derived.onnx", form="unrolled")
    assert derived.nodes > hand.nodes
    assert derived.inputs == hand.inputs
    random = np.random.default_rng(0)
    feeds = {
        spec.name: random.normal(size=[3 if size == "B" else size for size in spec.shape])
        for spec in hand.inputs
    }
    outputs = open_session(tmp_path / "derived.onnx").run(None, feeds)
    expected = open_session(tmp_path / "hand.onnx").run(None, feeds)
    for output, array in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, array, rtol=1e-10, atol=1e-12)


def leaky(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """m[t] = 0.9 m[t-1] + h[t-1], h[t] = tanh(projected[t] + h[t-1] @ W_hh.T) + m[t]: two states, neither an output"""
    m = 0.9 * states[1] + states[0]
    return [torch.tanh(torch.baddbmm(projected, states[0], weights[0])) + 0.1 * m, m]


class Leaky(LSTM):
    cell = Cell(leaky, states=2)


def test_a_cell_with_two_states(tmp_path: Path) -> None:
    layer = Leaky(3, 4, 2, bidirectional=True)
    x, states = torch.randn(6, 2, 3), (torch.randn(4, 2, 4), torch.randn(4, 2, 4))
    for args in [(x,), (x, states)]:
        report = export_onnx(layer, args, tmp_path / "leaky.onnx", form="unrolled")
        assert [spec.name for spec in report.outputs] == ["output", "h_n", "c_n"]
    assert [spec.name for spec in report.inputs] == ["input", "h0", "c0"]
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "leaky.onnx").graph.node)
    assert counts["MatMul"] == 4 * 6
    assert counts["Transpose"] == 4  # of the weights: once for each direction, not for each step


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 2}])
def test_every_direction_in_a_loop_has_its_own_weights(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """What is done to the weights stands once for each direction, under names that differ."""
    report = export_onnx(
        Leaky(3, 4, **options), torch.randn(6, 2, 3), tmp_path / "leaky.onnx", form="scan"
    )
    assert not report.failures


def short(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    return [projected + states[0] * weights[0]]


def fixes_the_batch(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    return [projected.view(-1, 2, 4) + states[0] * weights[0]]


def loops(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    h = torch.cond(states[0].sum() > 0, lambda h: h + 1, lambda h: h - 1, (states[0],))
    return [projected + h * weights[0]]


@pytest.mark.parametrize(
    ("step", "states", "base", "message"),
    [
        (short, 2, LSTM, "the step `short` returns 1 states; its cell says `states=2`."),
        (fixes_the_batch, 1, Recurrent, "the step `fixes_the_batch` cannot be written in ONNX: "),
        (
            loops,
            1,
            Recurrent,
            "the step `loops` branches or loops, which cannot be repeated; use operations such as",
        ),
    ],
)
def test_a_step_that_cannot_be_derived_is_named(
    step: Any, states: int, base: type[Recurrent], message: str, tmp_path: Path
) -> None:
    cls = type("Cls", (base,), {"cell": Cell(step, states=states, diagonal=True)})
    with pytest.raises(ExportError) as raised:
        export_onnx(cls(3, 4), torch.randn(5, 2, 3), tmp_path / "a.onnx", form="unrolled")
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())
