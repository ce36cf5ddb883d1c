"""`export_bundle`: what is in the folder, what each graph computes, and what happens to an existing folder."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn import bundle
from deploy_rnn.bundle import PRECISIONS, Manifest
from deploy_rnn.errors import BundleError, ExportError
from deploy_rnn.export import export_bundle
from deploy_rnn.serving import Engine

SCHEMA = Path(deploy_rnn.__file__).with_name("bundle.schema.json")
MANIFESTS = Path(__file__).parent / "manifests"


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.rnn = nn.GRU(16, 24, 2, batch_first=True, bidirectional=True)
        self.score = nn.Linear(48, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.score(self.rnn(self.embed(tokens))[0])
        return scores


def run(folder: Path, file: str, **feeds: Tensor) -> list[Any]:
    session = InferenceSession(str(folder / file))
    return list(session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()}))


def test_every_graph_is_the_model(tmp_path: Path) -> None:
    model = Tagger()
    folder = tmp_path / "tagger"
    manifest = export_bundle(model, torch.randint(20, (2, 5)), folder, buckets=[8, 3])
    assert [(graph.form, graph.steps) for graph in manifest.graphs] == [
        ("scan", None), ("native", None), ("unrolled", 3), ("unrolled", 8),
    ]  # fmt: skip
    for graph in manifest.graphs:
        tokens = torch.randint(20, (4, graph.steps or 11))
        output = run(folder, graph.file, tokens=tokens)[0]
        np.testing.assert_allclose(output, model(tokens).detach().numpy(), atol=1e-6)
    assert {path.name for path in folder.iterdir()} == {*manifest.sha256, "manifest.json"}


def test_the_manifest_says_what_each_axis_is(tmp_path: Path) -> None:
    layer = nn.LSTM(4, 6, batch_first=True)
    lengths = torch.tensor([5, 2])
    manifest = export_bundle(
        layer, torch.randn(2, 5, 4), tmp_path / "b", kwargs={"lengths": lengths}, name="lstm"
    )
    assert (manifest.name, manifest.version, manifest.lengths) == ("lstm", 2, {"lengths": "T"})
    tensors = [*manifest.inputs, *manifest.outputs]
    assert [(tensor.name, tensor.shape, tensor.batch, tensor.time) for tensor in tensors] == [
        ("input", ("B", "T", 4), 0, 1), ("lengths", ("B",), 0, None),
        ("output", ("B", "T", 6), 0, 1), ("h_n", (1, "B", 6), 1, None), ("c_n", (1, "B", 6), 1, None),
    ]  # fmt: skip
    assert Manifest.read(tmp_path / "b") == manifest


def test_the_manifest_follows_its_schema(tmp_path: Path) -> None:
    export_bundle(nn.RNN(4, 6), torch.randn(5, 2, 4), tmp_path / "b", streaming=True)
    schema = json.loads(SCHEMA.read_text())
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest, schema)
    assert set(schema["$defs"]["graph"]["properties"]["precision"]["enum"]) == PRECISIONS
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**manifest, "graphs": []}, schema)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_graph_has_its_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    layer = nn.RNN(4, 6, dtype=dtype)
    manifest = export_bundle(
        layer, torch.randn(5, 2, 4, dtype=dtype), tmp_path / "b", forms=["scan"], buckets=[3]
    )
    name = str(dtype).removeprefix("torch.")
    assert [graph.precision for graph in manifest.graphs] == [name, name]
    assert f"  scan.onnx: scan, {name}, any number of steps, " in str(manifest)
    assert f"  unrolled-3.onnx: unrolled, {name}, 3 steps, " in str(manifest)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_manifest_of_version_1_is_still_read(precision: str, tmp_path: Path) -> None:
    """As deploy-rnn 0.1.0 wrote it: graphs had no precision, but computed in that of the model."""
    text = (MANIFESTS / f"version_1_{precision}.json").read_text()
    (tmp_path / "manifest.json").write_text(text)
    manifest = Manifest.read(tmp_path)
    fields = json.loads(text)
    assert fields["version"] == 1
    for graph in fields["graphs"]:
        assert graph.setdefault("precision", precision) == precision
    assert json.loads(manifest.to_json()) == fields | {"version": 2}
    jsonschema.validate(json.loads(manifest.to_json()), json.loads(SCHEMA.read_text()))


def test_a_manifest_of_version_2_needs_a_precision(tmp_path: Path) -> None:
    fields = json.loads((MANIFESTS / "version_1_float32.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(fields | {"version": 2}))
    with pytest.raises(
        BundleError, match=r"is not a manifest of version 2: `graphs\[0\]\.precision` is missing"
    ):
        Manifest.read(tmp_path)


def test_the_manifest_says_how_rows_end_without_sequence_lens(tmp_path: Path) -> None:
    kwargs = {"lengths": torch.tensor([4, 2])}
    layer = nn.GRU(3, 4)
    folder = tmp_path / "held"
    args = (torch.randn(4, 2, 3),)
    manifest = export_bundle(layer, args, folder, kwargs=kwargs, row_ends="held", sizes=(2,))
    assert {graph.form: graph.row_ends for graph in manifest.graphs} == {
        "scan": None,
        "native": "held",
    }
    assert Manifest.read(folder) == manifest
    jsonschema.validate(json.loads(manifest.to_json()), json.loads(SCHEMA.read_text()))
    nodes = onnx.load(folder / "native.onnx", load_external_data=False).graph.node
    gru = next(node for node in nodes if node.op_type == "GRU")
    assert len(gru.input) == 4  # and no `sequence_lens`


def test_graphs_share_their_weights(tmp_path: Path) -> None:
    export_bundle(
        nn.RNN(64, 64), torch.randn(5, 2, 64), tmp_path / "b", forms=["scan"], buckets=[3, 4, 5]
    )
    weights = 2 * 64 * 64 * 4
    assert weights <= (tmp_path / "b" / "weights.bin").stat().st_size < weights + 2 * 4096
    for file in (tmp_path / "b").glob("*.onnx"):
        assert file.stat().st_size < 20_000
        onnx.checker.check_model(str(file), full_check=True)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(
        FileExistsError, match=r"exists and has no manifest.json; give another folder, or remove it"
    ):
        export_bundle(nn.RNN(4, 6), torch.randn(5, 2, 4), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_old_bundle_stays_until_the_new_one_is_checked(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    x = torch.randn(5, 2, 4)
    export_bundle(nn.RNN(4, 6), x, folder, forms=["scan"])
    before = (folder / "manifest.json").read_text()
    with pytest.raises(ExportError):
        export_bundle(nn.LSTM(4, 6, bidirectional=True), x, folder, streaming=True)
    with pytest.raises(
        ExportError, match="`forms` has 'spiral'; use 'unrolled' or 'scan' or 'native'"
    ):
        export_bundle(nn.LSTM(4, 6), x, folder, forms=["spiral"])
    with pytest.raises(ExportError, match="differs by"):
        export_bundle(nn.RNN(4, 6), x, folder, atol=0.0)
    assert (folder / "manifest.json").read_text() == before
    export_bundle(nn.GRU(4, 6), x, folder, forms=["native"])
    assert {path.name for path in folder.iterdir()} >= {"native.onnx", "manifest.json"}
    assert not (folder / "scan.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "is not a bundle: manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "is not a manifest: `version` is missing"),
        (lambda folder: (folder / "manifest.json").write_text('{"version": 2}'), "of version 2: `name` is missing"),
        (lambda folder: (folder / "manifest.json").write_text('{"version": 3}'), "version 3; this deploy-rnn reads up"),
        (lambda folder: (folder / "scan.onnx").unlink(), "lacks 'scan.onnx', which its manifest names"),
        (lambda folder: (folder / "weights.bin").write_bytes(b"0"), "is not the file that was exported: its sha256 is"),
    ],
)  # fmt: skip
def test_a_spoilt_bundle_is_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    export_bundle(nn.RNN(16, 32), torch.randn(5, 2, 16), folder, forms=["scan"])
    Manifest.read(folder).check(folder)
    spoil(folder)
    with pytest.raises(BundleError, match=message):
        Manifest.read(folder).check(folder)


def test_the_files_are_hashed_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert (
        bundle.sha256(tmp_path / "x")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


class Strided(nn.Module):
    """One step for four of the input's, which are its last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 4, stride=4)
        self.rnn = nn.GRU(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(self.conv(x).transpose(1, 2))[0]
        return output


@pytest.mark.filterwarnings(
    "ignore:axis 2 of `x`, W, can have a size of 4 or more only:UserWarning"
)
def test_steps_that_are_computed_from_an_axis_have_buckets_of_that_axis(tmp_path: Path) -> None:
    model, x = Strided(), torch.randn(3, 3, 16)
    axes = {"x": {0: "B", 2: "W"}}
    manifest = export_bundle(
        model, (x,), tmp_path / "b", forms=["scan"], buckets=[9, 16], dynamic_shapes=axes, sizes=[5]
    )
    assert [graph.steps for graph in manifest.graphs] == [None, 9, 16]
    (spec,) = manifest.inputs
    assert (spec.shape, spec.batch, spec.time) == (("B", 3, "W"), 0, 2)
    engine = Engine(tmp_path / "b")
    engine.warm_up()
    for width in (9, 13, 16):
        x = torch.randn(2, 3, width)
        output = engine.run({"x": x.transpose(1, 2).contiguous().numpy()})["output"]
        np.testing.assert_allclose(output, model(x).detach(), atol=1e-5)
    # Without buckets, form "unrolled" has the example's size.
    manifest = export_bundle(
        model, (x,), tmp_path / "b", forms=["unrolled"], dynamic_shapes=axes, sizes=[5]
    )
    assert [graph.steps for graph in manifest.graphs] == [16]


class TwoRates(nn.Module):
    """Four samples for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 6, batch_first=True)

    def forward(self, samples: Tensor, frames: Tensor) -> Tensor:
        frames = frames.repeat_interleave(4, 1)
        output: Tensor = self.rnn(torch.cat([samples.unsqueeze(-1), frames], -1))[0]
        return output


def test_a_bucket_has_every_length_that_follows_from_its_steps(tmp_path: Path) -> None:
    model = TwoRates()
    example = torch.randn(3, 24), torch.randn(3, 6, 4)
    export_bundle(model, example, tmp_path / "b", forms=["unrolled"], buckets=[2, 6])
    engine = Engine(tmp_path / "b")
    engine.warm_up()
    for frames in (2, 6):
        args = torch.randn(2, 4 * frames), torch.randn(2, frames, 4)
        feeds = {"samples": args[0].numpy(), "frames": args[1].numpy()}
        np.testing.assert_allclose(engine.run(feeds)["output"], model(*args).detach(), atol=1e-5)
