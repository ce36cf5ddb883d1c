"""Files checked in another runtime, which a small module of the test plays: no other runtime is needed here."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from deploy_rnn.errors import ExportError, RuntimeMissingError, VerificationError
from deploy_rnn.export import export_onnx, verify
from deploy_rnn.export.onnx_file import OnnxFile
from deploy_rnn.export.runtimes import faults, table
from deploy_rnn.export.runtimes.table import RUNTIMES, Runtime

SIZES = (2,)
X = torch.randn(4, 3, 5)

OPENER = '''
"""onnxruntime, as if it were another runtime; it prints, as many do."""

import os
import onnxruntime

def version():
    return "1.2"

def open_file(source):
    print("opening", source.shapes)
    session = onnxruntime.InferenceSession(source.path)

    def run(feeds):
        outputs = session.run(list(source.outputs), dict(feeds))
        {fault}
        return outputs

    return run
'''


@pytest.fixture
def add_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add the runtime "played" to the table; `fault` is a line of its code."""

    def add(fault: str = "pass", *, one_size: bool = False) -> None:
        (tmp_path / "played_runtime.py").write_text(OPENER.replace("{fault}", fault))
        monkeypatch.syspath_prepend(tmp_path)
        played = Runtime(
            "played", "Played", "played_runtime", "played_runtime", "pip", one_size=one_size
        )
        monkeypatch.setitem(RUNTIMES, "played", played)  # type: ignore[misc]

    return add


@pytest.fixture(scope="module")
def layer() -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(5, 4).eval()


@pytest.fixture(scope="module")
def file(layer: nn.GRU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtimes") / "gru.onnx"
    export_onnx(layer, X, path, form="native", sizes=SIZES)
    return path


@pytest.mark.parametrize("one_size", [False, True])
def test_the_same_cases_run_there(
    one_size: bool, layer: nn.GRU, file: Path, add_runtime: Callable[..., None]
) -> None:
    add_runtime(one_size=one_size)
    here = verify(file, layer, X, sizes=SIZES)
    there = verify(file, layer, X, sizes=SIZES, runtime="played")
    assert there.providers == {"played": "checked; Played 1.2"}
    cases = {(run.case, run.output) for run in here.comparisons}
    assert {(run.case, run.output) for run in there.comparisons} == cases
    assert there.latency["played"]["example"] > 0
    assert there.over_time


def test_wrong_numbers_are_found_and_no_file_is_left(
    layer: nn.GRU, tmp_path: Path, add_runtime: Callable[..., None]
) -> None:
    add_runtime("outputs[0] = outputs[0] + 0.01")
    path = tmp_path / "gru.onnx"
    with pytest.raises(VerificationError, match=r"`output` differs by 1\.0e-02 .* on played"):
        export_onnx(layer, X, path, form="native", sizes=SIZES, runtime="played")
    assert not path.exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("os.abort()", r"fails on example: Played ended its process by SIGABRT: opening None"),
        ("raise ValueError('no such thing')", r"fails on example: Played: no such thing"),
        ("outputs = outputs[:1]", r"fails on example: Played returned 1 outputs, the file has 2"),
    ],
)
def test_a_runtime_that_fails_is_an_error_with_its_words(
    fault: str, message: str, layer: nn.GRU, file: Path, add_runtime: Callable[..., None]
) -> None:
    add_runtime(fault)
    with pytest.raises(ExportError, match=message):
        verify(file, layer, X, sizes=SIZES, runtime="played")


def test_auto_chooses_among_what_the_runtime_takes(
    layer: nn.GRU, tmp_path: Path, add_runtime: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_runtime()
    no_scan = faults.Fault("played", "it has no Scan", "leave it", faults._has_loop)
    monkeypatch.setattr(faults, "FAULTS", (*faults.FAULTS, no_scan))
    kwargs = {"lengths": torch.tensor([4, 2, 1])}
    path = tmp_path / "gru.onnx"
    report = export_onnx(layer, X, path, kwargs=kwargs, sizes=SIZES, runtime="played")
    assert report.form == "native"
    assert report.file.row_ends == "held"
    assert report.forms["scan"] == "it has no Scan; leave it."
    assert list(report.providers) == [
        "CPUExecutionProvider", "CUDAExecutionProvider", "played",
    ]  # fmt: skip


def test_what_is_missing_is_named_with_what_to_install(
    layer: nn.GRU, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "find_spec", lambda _: None)
    message = r"`runtime` \(='mnn'\) needs the package `MNN`, which is not installed; run: pip install MNN"
    with pytest.raises(RuntimeMissingError, match=message):
        verify(file, layer, X, runtime="mnn")
    with pytest.raises(
        ValueError, match=r"`runtime` \(='ort'\) must be one of 'onnxruntime', 'openvino'"
    ):
        verify(file, layer, X, runtime="ort")


def test_what_is_known_to_be_wrong_is_refused_by_name(layer: nn.GRU, tmp_path: Path) -> None:
    kwargs = {"lengths": torch.tensor([4, 2, 1])}
    path = tmp_path / "gru.onnx"
    export_onnx(layer, X, path, kwargs=kwargs, form="native", sizes=SIZES)
    file = OnnxFile.read(path)
    assert file.recurrent.sequence_lens == {"GRU"}
    message = (
        r"gru.onnx would be wrong in OpenVINO, without a message: it ignores `sequence_lens` where shapes are dynamic, "
        r".* use row_ends='held'.* or runtime='openvino-static'"
    )
    with pytest.raises(ExportError, match=message):
        faults.refuse_wrong(file, "openvino")
    faults.refuse_wrong(file, "openvino-static")
    assert faults.runtimes_without_faults(file) == [
        "onnxruntime", "openvino-static", "onnxruntime-web", "onnxruntime-web-chromium",
    ]  # fmt: skip
