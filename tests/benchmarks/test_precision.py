"""The study of precisions runs at its smallest sizes, and its tables have what it measures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.reporting.precision_tables import (
    cells_section,
    precision_sections,
    rounding_ways_table,
)
from benchmarks.studies import (
    int8_cells,
    int8_contestants,
    int8_kernels,
    int8_rounding,
    precision,
)
from benchmarks.studies.precision import STATE

MACHINE = {
    "cpu": "a", "cores": 2, "python": "1", "torch": "2", "onnxruntime": "3", "onnx": "4", "onnxscript": "5",
}  # fmt: skip
FEW = {"rounds": 2, "calls": 1, "warm_up": 0, "pause": 0.0, "block_seconds": 1.0}


def test_layers_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "STEPS", {"unrolled": 2, "scan": 3})
    monkeypatch.setattr(precision, "RUNS", [(2, None), (1, 1)])
    monkeypatch.setattr(precision, "BLOCKS", FEW)
    monkeypatch.setattr(int8_kernels, "BLOCKS", FEW)
    monkeypatch.setattr(int8_kernels, "BATCHES", [1])
    [*_, rows] = precision.measure_all(["RNN"], [8])
    kernels = int8_kernels.measure_kernels([128])
    unrolled, unrolled_on_one_thread, scan, _ = rows
    assert set(unrolled["contestants"]) == {
        "float32", "int8", STATE, "quantize_dynamic", "torch.nn",
    }  # fmt: skip
    assert set(scan["contestants"]) == {"float32", "int8", STATE, "float16", "torch.nn"}
    errors = {name: measured["error"] for name, measured in scan["contestants"].items()}
    assert errors["float32"] < 1e-6 < errors["float16"] < errors[STATE] < errors["int8"] < 0.1
    assert scan["megabytes"].keys() == {"float32", "int8", STATE, "float16"}
    assert all(0 < measured["error"] < 0.05 for measured in kernels[0]["kernels"].values())
    result: dict[str, Any] = {
        "rows": rows, "kernels": kernels, "machine": MACHINE,
        "highlighter": {"float32": {"accuracy": 0.98, "kilobytes": 587.0}},
    }  # fmt: skip
    sections = precision_sections(result)
    first = sections["precision"].splitlines()[6]
    assert first.startswith("| RNN, H=8, B=2, T=2, unrolled | ")
    assert sections["precision"].splitlines()[4].endswith(" | quantize_dynamic | torch.nn |")
    assert len(sections["precision"].splitlines()) == 8
    on_one_thread = sections["precision_one_thread"].splitlines()[6]
    milliseconds = unrolled_on_one_thread["contestants"]["float32"]["milliseconds"]
    assert on_one_thread.startswith(f"| RNN, H=8, B=1, T=2, unrolled | {milliseconds:.2f} | ")
    # float16 is measured in one form.
    assert first.split(" | ")[4] == ""
    error = f"{unrolled['contestants'][STATE]['error']:.1e}"
    assert first.split(" | ")[3].endswith(f"x {error}")
    assert "| H=128, B=1 | " in sections["precision_kernels"]
    assert "| float32 | 98.000 % | 587 |" in sections["precision_highlighter"]
    assert "Measured on a, 2 cores" in sections["precision_highlighter"]


def test_the_operator_of_onnxruntime_is_right_and_its_rows_depend_on_each_other(
    tmp_path: Path,
) -> None:
    """And its steps on later ones, which no file of ours has."""
    torch.manual_seed(0)
    layer = nn.LSTM(8, 8)
    path = int8_contestants.dynamic_lstm(layer, tmp_path, levels=63, by_column=True)
    run = int8_contestants.in_onnxruntime(path)
    x = torch.randn(4, 2, 8)
    output = run(x.numpy())
    assert np.abs(output - layer(x)[0].detach().numpy()).max() < 0.05
    assert np.abs(run(x[:, :1].numpy()) - output[:, :1]).max() > 1e-5
    later = x.clone()
    later[2:] *= 10
    assert np.abs(run(later.numpy())[:2] - output[:2]).max() > 1e-5


def test_what_lessens_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_rounding, "STEPS", 5)
    monkeypatch.setattr(int8_rounding, "SEEDS", 1)
    errors = int8_rounding.measure("GRU", 8)
    assert 0 < errors["all rows in two parts"] < errors["as it is"]
    assert 0 < errors["weights of 8 bits"] < errors["as it is"] < 0.1
    rows = [{"family": "GRU", "H": 8, "errors": errors}]
    assert f"| as it is | {errors['as it is']:.4f} |" in rounding_ways_table({"rows": rows})


def test_cells_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_cells, "STEPS", 3)
    monkeypatch.setattr(int8_cells, "BATCHES", [2])
    monkeypatch.setattr(int8_contestants, "ROUNDS", 1)
    monkeypatch.setattr(int8_contestants, "SECONDS", 0.0)
    names = ("LSTM with peepholes", "GRUCell in a loop")
    rows = [row for name in names for row in int8_cells.measure_model(name, 8)]
    for row in rows:
        errors = {name: measured["error"] for name, measured in row["contestants"].items()}
        assert errors["float32"] < 1e-6 < errors["int8, state only"] < errors["int8"] < 0.1
    table = cells_section({"rows": rows, "machine": MACHINE})
    assert "| GRUCell in a loop, H=8, B=2 | " in table
