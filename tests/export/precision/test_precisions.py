"""A bundle in several precisions: whoever opens it says which, and no other is read."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.utils import parametrizations

from deploy_rnn.bundle import Manifest
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.cli import main
from deploy_rnn.errors import BundleError, LoadError
from deploy_rnn.export import export_bundle, export_onnx, verify_bundle, write_triton_model
from deploy_rnn.export.precision.reference import reference_of
from deploy_rnn.export.precision.scope import Int8Scope
from deploy_rnn.serving import Engine, Model, Request, cli
from deploy_rnn.serving.engine.reading import read_bundle
from deploy_rnn.serving.protocol import oip
from deploy_rnn.serving.ray import command
from deploy_rnn.serving.scoring.options import Options as ScoreOptions
from deploy_rnn.serving.scoring.scorer import Scorer

PRECISIONS = ("float32", "int8", "float16")
X = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def gru() -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(3, 40, 2).eval()


@pytest.fixture(scope="module")
def bundle(gru: nn.GRU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precisions") / "gru"
    export_bundle(
        gru, X, folder, forms=["scan"], sizes=(2,), streaming=True, precision=PRECISIONS, max_error=0.05,
        int8_products="state",
    )  # fmt: skip
    return folder


def expected(gru: nn.GRU, precision: str) -> np.ndarray:
    """(B, T, H)"""
    reference = reference_of(gru, precision, Int8Scope(products="state"))
    [output, _] = reference.outputs(ExampleCall.of(gru, (X,)))
    return output.detach().transpose(0, 1).numpy()


@pytest.fixture(params=PRECISIONS)
def model(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    with Model(bundle, precision=request.param, threads=1) as opened:
        yield opened


def test_a_stream_gets_the_precision_that_is_asked_for(model: Model, gru: nn.GRU) -> None:
    """In chunks, and two streams in one run: in int8, too, an answer depends on neither."""
    parts: list[list[np.ndarray]] = [[], []]
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        futures = []
        for row in range(2):
            chunk = X[start:stop, row : row + 1].transpose(0, 1).numpy()
            futures.append(
                model.submit(Request({"input": chunk}, sequence=f"s{row}", start=start == 0))
            )
        for row, future in enumerate(futures):
            parts[row].append(future.result(60).outputs["output"])
    answer = np.concatenate([np.concatenate(row, axis=1) for row in parts])
    distances = {
        precision: np.abs(answer - expected(gru, precision)).max() for precision in PRECISIONS
    }
    assert distances.pop(model.precision) < 2e-6
    assert min(distances.values()) > 2e-5
    parameters = oip.model_config(model, model._limits)["parameters"]
    assert parameters["precision"] == {"string_value": model.precision}


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_weights_that_are_computed_are_rounded_afterwards(precision: str, tmp_path: Path) -> None:
    gru = parametrizations.weight_norm(nn.GRU(3, 5), "weight_hh_l0")
    path = tmp_path / "a.onnx"
    export_onnx(gru, X, path, form="scan", precision=precision)
    assert path.exists()


def test_nobody_chooses_by_itself(bundle: Path) -> None:
    names = "float32 and int8 and float16"
    with pytest.raises(BundleError, match=f"has graphs in {names}; `precision` must say which"):
        Engine(bundle)
    with pytest.raises(BundleError, match=f"has graphs in {names}; `precision` is 'float64'"):
        Engine(bundle, precision="float64")
    assert Engine(bundle, precision="int8").precision == "int8"


def test_other_precisions_are_not_read(bundle: Path) -> None:
    content = read_bundle(bundle, "int8")
    assert list(content.graphs) == ["scan-int8.onnx"]
    assert list(content.graphs["scan-int8.onnx"].files) == ["weights-int8.bin"]
    sizes = {name: (bundle / f"weights-{name}.bin").stat().st_size for name in PRECISIONS}
    assert max(sizes["int8"], sizes["float16"]) < sizes["float32"]


def test_what_opens_a_model_passes_it_on(bundle: Path) -> None:
    options = {"precision": "float16", "threads": 1}
    repository = cli._make_repository(bundle, options)
    repository.load_all()
    assert repository.model("gru").precision == "float16"
    assert cli._describe(repository.model("gru")).startswith("gru (float16): input: float32 [")
    repository.close()
    assert command.make_served(bundle, "127.0.0.1", options, in_file=True).model == options
    assert Scorer(ScoreOptions(str(bundle), precision="float16"))._engine.precision == "float16"


def test_what_the_manifest_says(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert manifest.precisions == PRECISIONS
    assert [graph.file for graph in manifest.graphs] == [f"scan-{name}.onnx" for name in PRECISIONS]
    shown = CliRunner().invoke(main, ["inspect", str(bundle)]).output
    assert "  precisions: float32, int8, float16\n" in shown
    assert "  scan-int8.onnx: scan, int8, any number of steps, " in shown
    reports = json.loads((bundle / "report.json").read_text())
    assert [report["precision"] for report in reports] == list(PRECISIONS)


def test_every_graph_is_verified_in_its_precision(bundle: Path, gru: nn.GRU) -> None:
    reports = verify_bundle(bundle, gru, X, sizes=(2,), long_steps=None)
    assert [report.precision for report in reports] == list(PRECISIONS)
    assert [report.file.int8_products for report in reports] == [None, "state", None]


def test_triton_gets_one_of_them(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="`precision` must say which"):
        write_triton_model(bundle, tmp_path / "models")
    version = write_triton_model(bundle, tmp_path / "models", precision="int8")
    config = (version.parent / "config.pbtxt").read_text()
    assert 'string_value: "int8"' in config
    version = write_triton_model(
        bundle, tmp_path / "models", name="other", backend="onnxruntime", precision="int8"
    )
    assert b"MatMulInteger" in (version / "model.onnx").read_bytes()


def test_a_file_has_one_precision(bundle: Path) -> None:
    for name in ("int8", "float32"):
        path = bundle / f"scan-{name}.onnx"
        assert Engine(path, precision=name).precision == Engine(path).precision == name
        with pytest.raises(LoadError, match=f"is in {name}; `precision` is 'float16'"):
            Engine(path, precision="float16")


@pytest.mark.parametrize("precision", [(), ("int8", "int8"), 5, ["int8", 5]])
def test_several_precisions_are_different_names(precision: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`precision` \(=.*\) must be a name, or several differ"):
        export_bundle(nn.RNN(3, 4), X, tmp_path / "b", precision=precision)  # type: ignore[arg-type]
