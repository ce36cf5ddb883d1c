"""Each file is read once: what was checked is what runs, however the files are replaced, overwritten or removed."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy_rnn.errors import BundleError, LoadError
from deploy_rnn.runtime import open_session
from deploy_rnn.serving import Engine
from deploy_rnn.serving.engine.reading import read_bundle

WIDTH = 16
DATA = "weights.bin"


def make_graph(bias: float, *, steps: int | str = "T", location: str = DATA) -> onnx.ModelProto:
    """y = x @ weight + bias; the weight is in another file, the bias in the graph."""
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    weight.external_data.add(key="offset", value="0")
    weight.external_data.add(key="length", value=str(4 * WIDTH * WIDTH))
    constant = helper.make_tensor("bias", TensorProto.FLOAT, [1], [bias])
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", steps, WIDTH])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", steps, WIDTH])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight, constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def make_weights(value: float) -> bytes:
    return np.full((WIDTH, WIDTH), value, np.float32).tobytes()


def write_manifest(folder: Path, **changes: Any) -> None:
    def tensor(name: str) -> dict[str, Any]:
        shape = ["B", "T", WIDTH]
        return {"name": name, "dtype": "float32", "shape": shape, "batch": 0, "time": 1}

    def row(file: str, steps: int | None) -> dict[str, Any]:
        form = "native" if steps is None else "unrolled"
        return {
            "file": file, "form": form, "steps": steps, "nodes": 2, "milliseconds": 0.1, "precision": "float32",
        }  # fmt: skip

    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    manifest = {
        "version": 2, "name": "m", "producer": "test", "opset": 18, "inputs": [tensor("x")], "outputs": [tensor("y")],
        "lengths": {}, "states": {}, "graphs": [row("any.onnx", None), row("four.onnx", 4)], "sha256": digests,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def make_bundle(folder: Path, version: int = 1) -> Path:
    """y = 16 * version + 1000 * version, for x = 1 and whatever graph."""
    folder.mkdir(parents=True)
    (folder / "any.onnx").write_bytes(make_graph(1000.0 * version).SerializeToString())
    (folder / "four.onnx").write_bytes(make_graph(1000.0 * version, steps=4).SerializeToString())
    (folder / DATA).write_bytes(make_weights(version))
    write_manifest(folder)
    return folder


def answers(engine: Engine) -> set[float]:
    """The different numbers in the answers of both graphs."""
    results = [engine.run({"x": np.ones((3, steps, WIDTH), np.float32)})["y"] for steps in (4, 5)]
    return {float(number) for result in results for number in np.unique(result)}


def _overwrite(folder: Path) -> None:
    with (folder / DATA).open("r+b") as file:  # the same inode, as with cp
        file.write(make_weights(7))


def _truncate(folder: Path) -> None:
    os.truncate(folder / DATA, 0)


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("spoil", [_overwrite, _truncate, _remove])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_loaded_model_does_not_need_its_files(
    threads: int, spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    engine = Engine(make_bundle(tmp_path / "b"), threads=threads)
    assert answers(engine) == {1016.0}
    spoil(tmp_path / "b")
    assert answers(engine) == {1016.0}
    # It opens the sessions for one core.
    engine.warm_up()
    assert answers(engine) == {1016.0}


def test_the_sessions_of_a_model_share_its_weights(tmp_path: Path) -> None:
    graphs = read_bundle(make_bundle(tmp_path / "b")).graphs
    sessions = [open_session(graph) for graph in [*graphs.values(), *graphs.values()]]
    assert len(sessions) == 4
    places = {value.data_ptr() for session in sessions for value in session.shared_weights}
    assert places == {graphs["any.onnx"].files[DATA].ctypes.data}


def test_a_bundle_that_is_replaced_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    """As `export_bundle` replaces it, by a link that moves, and by files that are moved one by one."""
    releases = [make_bundle(tmp_path / f"release{version}", version) for version in (1, 2)]
    path = tmp_path / "b"
    path.symlink_to(releases[0])
    over = threading.Event()

    def swap() -> None:
        while not over.wait(0.003):
            for release in (*releases, *releases):
                (tmp_path / "new").symlink_to(release)
                (tmp_path / "new").replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[float] = set()
    rounds = 0
    try:
        # A slow machine may need more rounds until it has met both; pytest's time limit ends it if it never does.
        while rounds < 60 or seen != {1016.0, 2032.0}:
            found = answers(Engine(path, threads=1))
            assert found in ({1016.0}, {2032.0})
            seen |= found
            rounds += 1
    finally:
        over.set()
        thread.join()


def test_files_that_are_moved_into_place_one_by_one(tmp_path: Path) -> None:
    """rsync does so: between the first and the last the folder is a mixture, and is waited for."""
    old, new = make_bundle(tmp_path / "b", 1), make_bundle(tmp_path / "new", 2)
    names = sorted(path.name for path in new.iterdir())
    (new / names[0]).replace(old / names[0])

    def go_on() -> None:
        for name in names[1:]:
            (new / name).replace(old / name)

    timer = threading.Timer(0.05, go_on)
    timer.start()
    assert answers(Engine(old, threads=1)) == {2032.0}
    timer.join()


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "/etc/hostname", "other.bin", "./weights.bin", "", "manifest.json"],
)
def test_weights_are_files_that_the_manifest_lists(location: str, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    (tmp_path / "secret.bin").write_bytes(make_weights(1))
    (folder / "any.onnx").write_bytes(make_graph(0, location=location).SerializeToString())
    write_manifest(folder)
    (folder / "other.bin").write_bytes(make_weights(1))
    message = rf"any\.onnx' has weights in {re.escape(repr(location))}; they must be in a file that"
    with pytest.raises(BundleError, match=message):
        Engine(folder, threads=1)


def test_a_graph_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_text())
    (tensor,) = manifest["inputs"]
    for change, message in [
        ({"name": "z"}, "any.onnx' has other inputs than the manifest says: x."),
        ({"dtype": "float64"}, "has `x: float32 [B, T, 16]`, where the manifest says `x: float64"),
        ({"shape": ["B", "T", 17]}, "where the manifest says `x: float32 [B, T, 17]`."),
        ({"shape": ["B", "T"]}, "where the manifest says `x: float32 [B, T]`."),
    ]:
        write_manifest(folder, inputs=[tensor | change])
        with pytest.raises(BundleError, match=re.escape(message)):
            Engine(folder, threads=1)


@pytest.mark.parametrize(
    "content", [b"", b"not a graph", b"location" * 9, make_graph(0).SerializeToString()[:-40]]
)
def test_a_file_that_is_not_a_graph(content: bytes, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    (folder / "any.onnx").write_bytes(content)
    write_manifest(folder)
    with pytest.raises(BundleError, match=r"any\.onnx"):
        Engine(folder, threads=1)


def test_weights_that_are_too_short(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    (folder / DATA).write_bytes(make_weights(1)[:-4])
    write_manifest(folder)
    message = r"weights\.bin' has 1,020 bytes of weights, the graph needs 1,024: it was cut off"
    with pytest.raises(BundleError, match=message):
        Engine(folder, threads=1)
    path = make_file(tmp_path)
    os.truncate(tmp_path / "m.onnx.data", 0)
    with pytest.raises(LoadError, match=r"m\.onnx\.data' has 0 bytes of weights"):
        Engine(path, threads=1)


def test_only_what_the_graphs_need_of_a_file_is_kept(tmp_path: Path) -> None:
    """A sparse file can have any size."""
    folder = make_bundle(tmp_path / "b")
    os.truncate(folder / DATA, 5_000_000)
    write_manifest(folder)
    assert len(read_bundle(folder).graphs["any.onnx"].files[DATA]) == 4 * WIDTH * WIDTH
    assert answers(Engine(folder, threads=1)) == {1016.0}
    (folder / DATA).write_bytes(make_weights(1))
    with pytest.raises(BundleError, match="is not the file that was exported"):
        Engine(folder, threads=1)


def make_file(folder: Path, location: str = "m.onnx.data") -> Path:
    """A single file, as other exporters write it."""
    (folder / "m.onnx").write_bytes(make_graph(0, location=location).SerializeToString())
    (folder / "m.onnx.data").write_bytes(make_weights(1))
    return folder / "m.onnx"


def test_a_single_file_and_its_data_are_read_once(tmp_path: Path) -> None:
    engine = Engine(make_file(tmp_path), threads=2)
    os.truncate(tmp_path / "m.onnx.data", 0)
    (tmp_path / "m.onnx").unlink()
    engine.warm_up()
    assert np.unique(engine.run({"x": np.ones((1, 2, WIDTH), np.float32)})["y"]) == 16


@pytest.mark.parametrize(
    "location", ["../m.onnx.data", "sub/m.onnx.data", "/etc/hostname", "..", ""]
)
def test_data_of_a_single_file_lies_next_to_it(location: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.onnx.data").write_bytes(make_weights(1))
    with pytest.raises(LoadError, match="it must be the plain name of a file in its folder"):
        Engine(make_file(tmp_path, location), threads=1)


def test_data_of_a_single_file_that_is_a_link(tmp_path: Path) -> None:
    """To a file elsewhere; and to one where the .onnx file really is, as in a cache of downloads."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = make_file(folder)
    (tmp_path / "secret").write_bytes(make_weights(1))
    (folder / "m.onnx.data").unlink()
    with pytest.raises(LoadError, match=r"m\.onnx\.data' cannot be read: No such file"):
        Engine(path, threads=1)
    (folder / "m.onnx.data").symlink_to("../secret")
    with pytest.raises(LoadError, match="it is a link that leads out of the folder"):
        Engine(path, threads=1)
    path.rename(tmp_path / "blob")
    path.symlink_to("../blob")
    Engine(path, threads=1)
