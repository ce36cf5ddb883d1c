"""The study of precisions runs at its smallest sizes, and its tables have what it measures."""

from typing import Any

import pytest

from benchmarks.reporting.precision_tables import precision_sections
from benchmarks.studies import int8_kernels, precision

MACHINE = {
    "cpu": "a", "cores": 2, "python": "1", "torch": "2", "onnxruntime": "3", "onnx": "4", "onnxscript": "5",
}  # fmt: skip
FEW = {"rounds": 2, "calls": 1, "warm_up": 0, "pause": 0.0, "block_seconds": 1.0}


def test_layers_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "STEPS", {"unrolled": 2, "scan": 3})
    monkeypatch.setattr(precision, "BATCHES", [2])
    monkeypatch.setattr(precision, "BLOCKS", FEW)
    monkeypatch.setattr(int8_kernels, "BLOCKS", FEW)
    monkeypatch.setattr(int8_kernels, "BATCHES", [1])
    [*_, rows] = precision.measure_all(["RNN"], [8])
    kernels = int8_kernels.measure_kernels([128])
    unrolled, scan = rows
    assert set(unrolled["contestants"]) == {"float32", "int8", "quantize_dynamic", "torch.nn"}
    assert set(scan["contestants"]) == {"float32", "int8", "float16", "torch.nn"}
    errors = {name: measured["error"] for name, measured in scan["contestants"].items()}
    assert errors["float32"] < 1e-6 < errors["float16"] < errors["int8"] < 0.1
    assert scan["megabytes"].keys() == {"float32", "int8", "float16"}
    assert all(0 < measured["error"] < 0.05 for measured in kernels[0]["kernels"].values())
    result: dict[str, Any] = {
        "rows": rows, "kernels": kernels, "machine": MACHINE,
        "highlighter": {"float32": {"accuracy": 0.98, "kilobytes": 587.0}},
    }  # fmt: skip
    sections = precision_sections(result)
    first = sections["precision"].splitlines()[6]
    assert first.startswith("| RNN, H=8, B=2, T=2, unrolled | ")
    # float16 is measured in one form, and PyTorch leaves nn.RNN as it is.
    assert first.split(" | ")[3:6] == ["", first.split(" | ")[4], ""]
    assert "| H=128, B=1 | " in sections["precision_kernels"]
    assert "| float32 | 98.000 % | 587 |" in sections["precision_highlighter"]
    assert "Measured on a, 2 cores" in sections["precision_highlighter"]
