"""What `make cuda` measures of every way to run a layer, without a GPU: a CPU stands in, and nothing is compiled."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor

import deploy_rnn.compilation
from benchmarks import cuda
from benchmarks.reporting.cuda_tables import WAYS
from benchmarks.studies import cuda_ways

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, while it compiles
]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they are, where inductor would write C++ or kernels."""

    def as_it_is(graph: Any, *_: Any, **__: Any) -> Any:
        return graph.forward

    programs: dict[str, Any] = {}

    def keep(program: Any, *, package_path: str, **_: Any) -> str:
        programs[package_path] = program.module()
        return package_path

    monkeypatch.setattr(deploy_rnn.compilation, "compile_graph", as_it_is)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", as_it_is)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", keep)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", programs.__getitem__)


@pytest.mark.usefixtures("interpreted")
def test_every_way_runs_in_full_and_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "ways.json"
    sizes = ["--cells", "LSTM", "--hidden", "4", "--batch", "2", "--steps", "3"]
    sizes += ["--dtypes", "float32", "bfloat16"]
    command = ["cuda_ways", "--device", "cpu", *sizes, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    cuda_ways.main()
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    single, half = rows
    assert single["missing"] == {}
    assert list(single["contestants"]) == list(WAYS)
    assert set(half["missing"].values()) == {"the file is in float32"}
    assert set(half["contestants"]) | set(half["missing"]) == set(WAYS)
    table = capsys.readouterr().out
    assert "| LSTM, H=4, B=2, bfloat16 |" in table
    assert "| ms (speed) | torch.nn (cuDNN) | compiled, library |" in table


def test_a_study_of_each_name_can_be_run() -> None:
    for module, *_ in cuda.STUDIES.values():
        assert (cuda.ROOT / "benchmarks" / f"{module.replace('.', '/')}.py").exists()
