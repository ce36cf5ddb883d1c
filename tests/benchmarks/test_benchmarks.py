"""The benchmarks run, at their smallest; what they measure is nobody's test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_rnn(tmp_path: Path) -> None:
    done = run("rnn.py", "--points", "1", "--no-stock", "--output", tmp_path / "rnn.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "rnn.json").read_text(encoding="utf-8"))
    assert list(result["rows"][0]["contestants"]) == [
        "torch.nn.RNN", "deploy_rnn", "deploy_rnn, compiled", "deploy_rnn, onnxruntime",
    ]  # fmt: skip
    assert result["machine"]["torch"] == torch.__version__.partition("+")[0]
    assert "| T=50, B=1, I=64, H=128 |" in done.stdout


@pytest.mark.slow
def test_export(tmp_path: Path) -> None:
    done = run("exporters.py", "--steps", "3", "--hidden", "8", "9", "--output", tmp_path / "export.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["exporter"], row["H"]) for row in rows] == [
        (exporter, hidden) for hidden in (8, 9) for exporter in ("unrolled", "scan", "native", "torch.onnx.export")
    ]
    unrolled, _, native, stock = (row["measured"] for row in rows[:4])
    assert native["nodes"] < unrolled["nodes"] < stock["nodes"]
    assert all(row["measured"]["bytes"] > row["measured"]["weights"] for row in rows)
    assert all(row["measured"]["load"] > 0 for row in rows)
    assert "| deploy_rnn, native, T=3, H=9 |" in done.stdout


def test_an_export_that_was_stopped_is_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import tables

    try:
        result = tables.load(tables.RESULTS / "export.json")
        result["rows"] = [{**result["rows"][0], "measured": None}]
        assert f"H=128 | > {result['limit']} |  |  |  |" in tables.export_table(result)
    finally:
        sys.modules.pop("tables", None)


@pytest.mark.slow
def test_compile_time(tmp_path: Path) -> None:
    done = run("compile_time.py", "--steps", "3", "--families", "GRU", "--output", tmp_path / "compile.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "compile.json").read_text(encoding="utf-8"))["rows"]
    assert [row["contestant"] for row in rows] == ["deploy_rnn.compile"]
    assert all(row["seconds"]["3"] > 0 for row in rows)
    assert "| GRU, deploy_rnn.compile |" in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_torch_modules(tmp_path: Path) -> None:
    done = run(
        "torch_modules.py", "--families", "GRU", "--hidden", "8", "--steps", "3", "--output", tmp_path / "t.json"
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["rows"]
    assert [row["B"] for row in rows] == [1, 32]
    assert list(rows[0]["contestants"]) == [
        "torch.nn", "deploy_rnn", "deploy_rnn, scripted", "deploy_rnn, compiled", "deploy_rnn, packaged",
    ]  # fmt: skip
    assert "| GRU, B=32 |" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_says_plainly_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = run("cuda.py", tmp_path / "out")
    assert done.returncode == 1
    assert "There is no CUDA GPU here" in done.stderr
    assert "nothing was checked" in done.stderr
    assert not (tmp_path / "out").exists()
