"""What rounding may cost, in a measure of the user's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.export import ErrorMetric, export_onnx
from deploy_rnn.export.precision.cost import Deviation

seen: list[tuple[list[tuple[int, ...]], str]] = []


def largest(expected: Sequence[np.ndarray], answered: Sequence[np.ndarray]) -> float:
    seen.append(([array.shape for array in answered], str(expected[0].dtype)))
    return float(np.abs(expected[0] - answered[0]).max())


def export(path: Path, limit: float) -> Any:
    seen.clear()
    torch.manual_seed(0)
    return export_onnx(
        nn.RNN(3, 4), torch.randn(4, 2, 3), path, form="scan", sizes=(3,), precision="int8",
        max_error=ErrorMetric(largest, limit),
    )  # fmt: skip


def test_a_measure_bounds_the_error_on_the_example(tmp_path: Path) -> None:
    report = export(tmp_path / "m.onnx", 0.1)
    # Once, and not on random inputs.
    assert seen == [([(4, 2, 4), (1, 2, 4)], "float64")]
    measured = report.measured
    assert (measured.name, measured.limit) == ("largest", 0.1)
    assert 0 < measured.value <= report.rounding[0].largest
    assert f"  largest: {measured.value:.3g} on the example, at most 0.1" in str(report)
    assert "largest: " in report.to_html()
    assert '"measured": {' in report.to_json()


def test_beyond_its_limit_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="int8 costs too much in `max_error`: largest: 0"):
        export(tmp_path / "m.onnx", 1e-6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("result", [None, float("nan"), "much"])
def test_a_measure_returns_a_number(result: Any) -> None:
    deviation = Deviation("example", [np.zeros(2)], [np.zeros(2)])
    with pytest.raises(ExportError, match=r"`<lambda>` in `max_error` returned .* must return a"):
        ErrorMetric(lambda *_: result, 1.0).of(deviation)


def test_a_measure_that_fails_is_named() -> None:
    deviation = Deviation("example", [np.zeros(2)], [np.zeros(2)])

    def wrong(expected: Any, answered: Any) -> float:
        return float(expected["logits"])

    with pytest.raises(ExportError, match=r"`wrong` in `max_error` fails on the example: .*TypeEr"):
        ErrorMetric(wrong, 1.0).of(deviation)


@pytest.mark.parametrize("limit", [True, -1.0, float("inf"), "1"])
def test_a_limit_is_finite(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"`limit` \(=.*\) must be finite and >= 0"):
        ErrorMetric(largest, limit)
