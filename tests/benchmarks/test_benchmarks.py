"""The benchmarks run, at their smallest sizes. What they measure is not tested."""

import copy
import json
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import RESULTS, ROOT
from benchmarks.grid import contestants, graphs, lengths, measure, points, products
from benchmarks.reporting import plots, summary, tables
from benchmarks.studies import exporters, torch_modules

GRID = RESULTS / "grid_cpu.json"
MACHINE = {
    "cpu": "a", "cores": 2, "python": "1", "torch": "2", "onnxruntime": "3", "onnx": "4", "onnxscript": "5",
}  # fmt: skip


def make_row(cell: str = "tanh", batch: int = 32, **medians: float) -> dict[str, Any]:
    """A row of a grid: `ours` is our module in PyTorch, `native` and `stock` are graphs in onnxruntime."""
    names = {
        "ours": "deploy_rnn", "torch": "torch.nn", "native": "onnxruntime, native",
        "stock": "onnxruntime, torch.onnx.export",
    }  # fmt: skip
    contestants = {
        names[name]: {"median": ms, "low": ms, "high": ms} for name, ms in medians.items()
    }
    sizes = {"cell": cell, "H": 8, "layers": 2, "directions": 2, "T": 50, "B": batch}
    return {**sizes, "contestants": contestants, "missing": {}, "products": {"torch": 1.0}}


def run_module(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_sizes_that_are_exported() -> None:
    assert exporters.sizes([10, 100, 1000], 64, 256) == [
        (10, 64),
        (100, 64),
        (1000, 64),
        (100, 256),
    ]
    assert exporters.sizes([3], 8, 8) == [(3, 8)]


@pytest.mark.slow
def test_export(tmp_path: Path) -> None:
    output = tmp_path / "export.json"
    finished = run_module(
        "studies.exporters", "--steps", "3", "--hidden", "8", "8", "--output", output
    )
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    names = [row["exporter"] for row in rows]
    assert names == ["unrolled", "scan", "native", "torch.onnx.export"]
    assert [row["H"] for row in rows] == [8, 8, 8, 8]
    unrolled, _, native, stock = (row["measured"] for row in rows)
    assert native["nodes"] < unrolled["nodes"] < stock["nodes"]
    for row in rows:
        measured = row["measured"]
        assert measured["bytes"] > measured["weights"]
        assert measured["load"] > 0
        assert measured["peak"] > measured["memory"] > 0
    assert "| deploy_rnn, native, T=3, H=8 |" in finished.stdout


def test_an_export_that_was_stopped_is_shown_as_such() -> None:
    result = tables.load(RESULTS / "export.json")
    result["rows"] = [{**result["rows"][0], "measured": None}]
    assert f"H=128 | > {result['limit']} |  |  |  |" in tables.export_table(result)


@pytest.mark.slow
def test_compile_time(tmp_path: Path) -> None:
    output = tmp_path / "compile.json"
    finished = run_module(
        "studies.compile_time", "--steps", "3", "--families", "GRU", "--output", output
    )
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert [row["contestant"] for row in rows] == ["deploy_rnn.compile"]
    assert all(row["seconds"]["3"] > 0 for row in rows)
    assert "| GRU, deploy_rnn.compile |" in finished.stdout


@pytest.mark.slow
def test_loading(tmp_path: Path) -> None:
    output = tmp_path / "loading.json"
    sizes = ["--words", 500, "--width", 16, "--repeats", 1]
    finished = run_module("studies.loading", *sizes, "--output", output)
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 3
    for row in rows:
        assert row["seconds"] > 0
        assert row["peak"] >= row["memory"] > 0
    assert "| read once, shared (`Engine`) |" in finished.stdout


@pytest.mark.slow
def test_grpc_servers(tmp_path: Path) -> None:
    output = tmp_path / "grpc_servers.json"
    unary = "grpc.aio, a unary handler"
    few = ["--servers", unary, "--seconds", 0.2, "--rounds", 1]
    finished = run_module("studies.grpc_servers", *few, "--output", output)
    assert finished.returncode == 0, finished.stderr
    ours, bare = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert bare["server"] == unary
    assert ours["cpu_ms"] > bare["cpu_ms"] > 0
    assert f"| {unary} |" in finished.stdout


@pytest.mark.slow
def test_score(tmp_path: Path) -> None:
    output = tmp_path / "score.json"
    sizes = ["--families", "GRU", "--hidden", 4, "--rows", 40, "--median", 5]
    finished = run_module("score", *sizes, "--output", output)
    assert finished.returncode == 0, finished.stderr
    (row,) = json.loads(output.read_text(encoding="utf-8"))["rows"]
    # All contestants gave the same answers.
    assert row["difference"] < 1e-5
    assert len(row["rates"]) == 4
    assert all(rate > 0 for rate in row["rates"].values())
    assert "| GRU, H=4, 40 rows |" in finished.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_torch_modules(tmp_path: Path) -> None:
    finished = run_module(
        "studies.torch_modules",
        "--families",
        "GRU",
        "--hidden",
        "8",
        "--steps",
        "3",
        "--output",
        tmp_path / "t.json",
    )
    assert finished.returncode == 0, finished.stderr
    rows = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["rows"]
    assert [row["B"] for row in rows] == [1, 32]
    assert list(rows[0]["contestants"]) == [
        "torch.nn", "deploy_rnn", "deploy_rnn, scripted", "deploy_rnn, compiled", "deploy_rnn, packaged",
    ]  # fmt: skip
    assert "| GRU, B=32 |" in finished.stdout


def test_what_compile_did_not_choose_is_another_graph() -> None:
    """A column of the study is not the same graph twice."""
    assert torch_modules.other_choices(nn.LSTM(3, 4)) == ["scan"]
    assert torch_modules.other_choices(nn.GRU(3, 4)) == []


def test_what_auto_chooses_was_never_slower_than_torch() -> None:
    """`recurrence="auto"` is a rule, and the published points are what it rests on."""
    for row in tables.load(RESULTS / "torch_modules.json")["rows"]:
        times = summary.medians(row)
        quickest = 0.95 * times["deploy_rnn, compiled"]
        assert times["torch.nn"] > quickest, row
        assert times.get("deploy_rnn, scan", inf) > quickest, row


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_says_plainly_that_there_is_no_gpu(tmp_path: Path) -> None:
    finished = run_module("cuda", tmp_path / "out")
    assert finished.returncode == 1
    assert "There is no CUDA GPU here" in finished.stderr
    assert "nothing was checked" in finished.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_grid(tmp_path: Path) -> None:
    points = ["relu,8,3,2", "LSTM,8,3,1"]
    arguments = [
        "--points",
        *points,
        "--no-compile",
        "--threads",
        "1",
        "--output",
        tmp_path / "grid.json",
    ]
    finished = run_module("grid.measure", *arguments, "--files", tmp_path / "files")
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "grid.json").read_text(encoding="utf-8"))
    assert [(row["cell"], row["B"]) for row in result["rows"]] == [("LSTM", 1), ("relu", 2)]
    names = {
        "torch.nn", "torch.nn, traced", "deploy_rnn", "onnxruntime, unrolled", "onnxruntime, scan",
        "onnxruntime, native", "onnxruntime, torch.onnx.export", "onnxruntime, torch.onnx.export, legacy",
        "openvino, native", "openvino, unrolled", "deploy_rnn, Engine",
    }  # fmt: skip
    for row in result["rows"]:
        assert names <= row["contestants"].keys() | row["missing"].keys()
        missing_names = {name for name in row["missing"] if not name.startswith("openvino")}
        stock = {"onnxruntime, torch.onnx.export"} if row["cell"] == "relu" else set()
        assert missing_names == {"deploy_rnn, packaged"} | stock, row["missing"]
        for timing in row["contestants"].values():
            assert timing["low"] <= timing["median"] <= timing["high"]
        assert row["contestants"]["onnxruntime, unrolled"]["bytes"] > 0
        by_core = {"onnxruntime, rows apart"} if row["B"] > 1 else set()
        assert set(row["products"]) == {"torch", "onnxruntime"} | by_core
    assert result["settings"]["threads"] == 1
    assert result["machine"]["torch"] == torch.__version__.partition("+")[0]
    assert "| LSTM, B=1 |" in finished.stdout
    assert len(list((tmp_path / "files" / "stock").glob("*.onnx"))) == 1  # kept, for the next run


def test_a_contestant_that_is_missing_or_wrong_is_reported() -> None:
    x = torch.zeros(3, 2, 4)

    def open_missing() -> None:
        raise contestants.Missing("openvino is not installed")

    available, missing, differences = measure.open_all(
        {
            "right": lambda: contestants.torch_contestant(lambda x: (x,), x),
            "wrong": lambda: contestants.torch_contestant(lambda x: (x + 0.5,), x),
            "missing": open_missing,
        },
        expected=torch.zeros(3, 2, 4),
    )
    assert list(available) == ["right"]
    assert missing == {"wrong": "wrong by 5.0e-01", "missing": "openvino is not installed"}
    assert differences == {"right": 0.0}


def test_a_file_that_cannot_be_written_is_a_missing_contestant(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    files = graphs.run_job(
        graphs.Job(graphs.write_legacy, points.Net("tanh", 4), 3, tmp_path / "absent")
    )
    torch.set_num_threads(threads)
    with pytest.raises(contestants.Missing, match="absent"):
        graphs.find_file(files, graphs.LEGACY)
    with pytest.raises(contestants.Missing, match="left out of a quick run"):
        graphs.find_file(files, graphs.STOCK)


def test_one_of_ours_that_is_wrong_ends_the_run() -> None:
    x = torch.zeros(3, 2, 4)
    wrong = {"deploy_rnn": lambda: contestants.torch_contestant(lambda x: (x + 0.5,), x)}
    with pytest.raises(AssertionError, match="deploy_rnn is wrong by 5"):
        measure.open_all(wrong, x)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", ["tanh", "LSTM"])
def test_the_products_alone_are_every_product_once(
    tmp_path: Path, cell: str, directions: int
) -> None:
    point = points.Point(points.Net(cell, 8, layers=2, directions=directions), 5, 3)
    layer, x = point.net.layer(), point.input()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        products.torch_products(layer, x)()
    gates = points.GATES[cell]
    first_layer = (8 + 8) * 8 * gates
    second_layer = (8 * directions + 8) * 8 * gates
    assert counter.get_total_flops() == 2 * 5 * 3 * directions * (first_layer + second_layer)
    products.onnx_products(layer, x, tmp_path / "products.onnx", 1)()
    nodes = onnx.load(tmp_path / "products.onnx").graph.node
    assert [node.op_type for node in nodes] == ["MatMul"] * (2 * directions * (5 + 1))


@pytest.mark.slow
def test_lengths_group_rows_and_every_way_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [np.ones((length, 2), np.float32) for length in (3, 1, 9, 2)]
    ungrouped = lengths.make_batches(sequences, 2, grouped=False)
    grouped = lengths.make_batches(sequences, 2, grouped=True)
    in_buckets = lengths.make_batches(sequences, 2, grouped=True, buckets=(5, 10))
    assert [batch.x.shape[0] for batch in ungrouped] == [3, 9]
    assert [batch.indices for batch in grouped] == [[1, 3], [0, 2]]
    assert [batch.x.shape[0] for batch in grouped] == [2, 9]
    assert [batch.x.shape[0] for batch in in_buckets] == [5, 10]
    monkeypatch.setattr(lengths, "LONGEST", 6)
    monkeypatch.setattr(lengths, "BUCKETS", (3, 6))
    monkeypatch.setattr(lengths, "BATCH", 2)
    names = list(lengths.measure(points.Net("GRU", 4), 4, 1)["contestants"])
    assert names[:3] == ["torch.nn, padded", "torch.nn, packed", "scan, padded"]
    assert names[-2:] == ["unrolled, buckets", "Engine, grouped"]


def test_the_native_operator_is_ours_too() -> None:
    row = make_row(torch=8.0, ours=4.0, native=2.0)
    assert summary.lead(row, summary.PEERS["torch.nn"]) == 4
    assert summary.lead(row, summary.PEERS["native operator"]) == 1
    assert (
        summary.lead(make_row(torch=8.0, ours=1.0, native=2.0), summary.PEERS["native operator"])
        == 2
    )
    assert summary.lead(row, summary.PEERS["OpenVINO"]) is None
    assert summary.share(row) == 0.5


def test_targets_are_met_or_not_by_the_figures() -> None:
    rows = [
        make_row(torch=8.0, ours=1.0, native=2.0),
        make_row(torch=2.0, ours=1.0, native=2.0, batch=1),
    ]
    targets = {target.name: target for target in summary.targets({"rows": rows, "lengths": []})}
    eager = targets["RNN, against torch.nn"]
    native = targets["RNN, against native operator"]
    assert (eager.value, eager.met) == (pytest.approx(4), True)
    assert eager.where == "2.00x at tanh, T=50, B=1, H=8"
    assert eager.bound == pytest.approx(4 * 1.0)
    assert (native.value, native.met) == (pytest.approx(2), False)
    gru = targets["GRU, against torch.nn"]
    assert (gru.value, gru.met) == (None, None)


def test_points_where_a_peer_is_ahead() -> None:
    rows = [
        make_row(torch=1.0, ours=2.0),
        make_row(torch=2.0, ours=2.05),
        make_row(torch=1.0, ours=3.0, stock=2.0),
    ]
    behind = summary.points_behind({"device": "cpu", "rows": rows})
    assert [(factor, peer) for factor, peer, _ in behind] == [
        (3.0, "torch.nn"), (2.0, "torch.nn"), (1.5, "torch.onnx.export"),
    ]  # fmt: skip


@pytest.fixture
def standard_grid() -> dict[str, Any]:
    """A standard grid with made-up times."""
    rows = [
        {**make_row(torch=8.0, ours=1.0, native=2.0), **point.sizes} for point in points.standard()
    ]
    return {"device": "cpu", "rows": rows, "lengths": [], "machine": MACHINE}


def test_every_point_and_target_is_in_the_tables(standard_grid: dict[str, Any]) -> None:
    sections = tables.grid_sections(standard_grid)
    assert sections["grid_targets"].count("\n") == 1 + len(summary.targets(standard_grid))
    assert sections["grid_points"].count("\n") == 1 + len(standard_grid["rows"])
    assert "| LSTM, B=32 | 8.00x (8.00x) | 2.00x (2.00x) | 100 % |" in sections["grid"]
    assert sections["grid_behind"] == "Nowhere."


def test_the_plot_has_a_panel_for_each_cell(standard_grid: dict[str, Any]) -> None:
    figure = plots.grid_plot(standard_grid)
    assert [axes.get_title() for axes in figure.axes] == ["tanh", "relu", "GRU", "LSTM"]


def test_the_standard_grid_is_what_was_committed() -> None:
    expected = [point.sizes for point in points.standard()]
    result = json.loads(GRID.read_text(encoding="utf-8"))
    committed = [{key: row[key] for key in expected[0]} for row in result["rows"]]
    assert sorted(map(str, committed)) == sorted(map(str, expected))


def test_compare(tmp_path: Path) -> None:
    old = {"rows": [make_row(ours=1.0, torch=4.0)], "machine": MACHINE}
    new: Any = copy.deepcopy(old)
    new["rows"][0]["contestants"]["deploy_rnn"]["median"] = 1.5
    for name, result in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    finished = run_module("compare", *files)
    assert finished.returncode == 0, finished.stderr
    assert "| cell=tanh, H=8, layers=2, directions=2, T=50, B=32 | 1.50 | 1.00 |" in finished.stdout
    assert "| geometric mean | 1.50 | 1.00 |" in finished.stdout
    finished = run_module("compare", *files, "--fail-above", "1.4")
    assert finished.returncode == 1
    assert "deploy_rnn takes 1.50 times as long as before; the limit is 1.4." in finished.stderr
    assert (
        run_module("compare", *files, "--fail-above", "1.4", "--contestant", "torch.nn").returncode
        == 0
    )
    assert run_module("compare", *files, "--contestant", "nobody").returncode == 2
    del new["rows"][0]["contestants"]["torch.nn"]
    files[1].write_text(json.dumps(new), encoding="utf-8")
    finished = run_module("compare", *files, "--fail-above", "2")
    assert finished.returncode == 1
    assert "torch.nn is missing at 1 points." in finished.stderr
