"""What is wrong with a bundle is a BundleError that names the file and the field; its files are read as plain files."""

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy_rnn import bundle, bundle_files
from deploy_rnn.bundle import Manifest, checked_manifest
from deploy_rnn.bundle_files import read_settled
from deploy_rnn.errors import BundleError

GRAPH = b"a graph"
WEIGHTS = b"the weights" * 1000
MANIFEST: dict[str, Any] = {
    "version": 2,
    "name": "tagger",
    "producer": "deploy-rnn 0.2.0",
    "opset": 18,
    "inputs": [
        {"name": "x", "dtype": "float32", "shape": ["B", "T", 3], "batch": 0, "time": 1},
        {"name": "lengths", "dtype": "int64", "shape": ["B"], "batch": 0, "time": None},
        {"name": "h0", "dtype": "float32", "shape": [1, "B", 4], "batch": 1, "time": None},
    ],
    "outputs": [
        {"name": "y", "dtype": "float32", "shape": ["B", "T", 4], "batch": 0, "time": 1},
        {"name": "h_n", "dtype": "float32", "shape": [1, "B", 4], "batch": 1, "time": None},
    ],
    "lengths": {"lengths": "T"},
    "states": {"h0": "h_n"},
    "graphs": [
        {
            "file": "scan.onnx", "form": "scan", "steps": None, "nodes": 9, "milliseconds": 0.25,
            "precision": "float32", "ranges": {"T": [2, None]},
        },
        {
            "file": "unrolled-8.onnx", "form": "unrolled", "steps": 8, "nodes": 80, "milliseconds": 0.125,
            "precision": "float32",
        },
    ],
    "sha256": {
        "scan.onnx": "12e25563f41db2a2eb52bc7ef35cd7b9b3dd0ab6d1a1a0f7be0da09ab3ba1e26",
        "unrolled-8.onnx": "12e25563f41db2a2eb52bc7ef35cd7b9b3dd0ab6d1a1a0f7be0da09ab3ba1e26",
        "weights.bin": "0" * 64,
    },
}  # fmt: skip

WRONG: list[Any] = [
    None, True, -1, 0, 7, 2.5, 10**40, 1e300, "", "no such thing", "../x", "\ud800", "x" * 100_000, [], [[]], {},
    {"a": None}, [None, 1], 10**4000,
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle, as far as its files are read and not opened."""
    import hashlib

    path = tmp_path / "b"
    path.mkdir()
    contents = {"scan.onnx": GRAPH, "unrolled-8.onnx": GRAPH, "weights.bin": WEIGHTS}
    manifest = copy.deepcopy(MANIFEST)
    for name, content in contents.items():
        (path / name).write_bytes(content)
        manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    write(path, manifest)
    return path


def write(folder: Path, manifest: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within a JSON value, itself included."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def changed(place: tuple[Any, ...], value: Any) -> Any:
    manifest = copy.deepcopy(MANIFEST)
    if not place:
        return value
    inner = manifest
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return manifest


def test_any_changed_value_is_read_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand manifests: each is read as what it says, or a BundleError says where it is wrong."""
    refused = 0
    for place in places(MANIFEST):
        for value in WRONG:
            manifest = changed(place, value)
            data = json.dumps(manifest).encode()
            monkeypatch.setattr(bundle, "read_manifest_bytes", lambda folder, data=data: data)
            try:
                read = Manifest.read("folder")
            except BundleError as error:
                refused += 1
                message = str(error)
                assert "'folder/manifest.json'" in message
                assert len(message) < 600
                message.encode("utf-8")
                # A name that is gone is missed where it is used.
                fields = {*place[:1], "version", "lengths", "states", "graphs"}
                named = re.search(r"`([^`]*)`", message)
                assert (
                    "has version" in message
                    or "is not JSON" in message
                    or (named is not None and any(field in named[1] for field in fields))
                )
            else:
                if place[-1] == "ranges":
                    del manifest["graphs"][0]["ranges"]  # no limits are not written
                assert json.loads(read.to_json()) == manifest
    assert refused > 800


def test_a_value_that_is_left_out_is_named(tmp_path: Path) -> None:
    for place in places(MANIFEST):
        if (
            not place
            or not isinstance(place[-1], str)
            or place[0] in ("lengths", "states", "sha256")
        ):
            continue
        manifest = changed(place, None)
        parent = manifest
        for step in place[:-1]:
            parent = parent[step]
        del parent[place[-1]]
        write(tmp_path, manifest)
        if place[-1] in ("ranges", "T"):
            Manifest.read(tmp_path)
            continue
        with pytest.raises(BundleError, match=rf"`[^`]*{place[-1]}` is missing"):
            Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("graphs",), [], "`graphs` must be a list of at least 1, got a list of 0"),
        (("graphs", 0, "file"), "../scan.onnx", "`graphs[0].file` must be the name of a file that `sha256` lists"),
        (("graphs", 1, "file"), "scan.onnx", "`graphs[1].file` must be another file than that of the others"),
        (("graphs", 1, "steps"), 0, "`graphs[1].steps` must be a whole number, 1 or more, got 0"),
        (("graphs", 1, "steps"), True, "`graphs[1].steps` must be a whole number, 1 or more, got true"),
        (("graphs", 0, "ranges", "T"), [3, 2], "`graphs[0].ranges.T[1]` must be a whole number, 3 or more, got 2"),
        (("graphs", 0, "more"), 1, "`graphs[0].more` is unknown"),
        (("inputs", 0, "batch"), 7, "`inputs[0].batch` must be a whole number, 0 to 2, got 7"),
        (("inputs", 0, "time"), 0, "`inputs[0].time` must be another axis than `batch`, got 0"),
        (("inputs", 0, "dtype"), "float23", "`inputs[0].dtype` must be one of bfloat16, bool, "),
        (("inputs", 0, "shape", 2), 10**12, "`inputs[0].shape[2]` must be a whole number, 0 to 2147483647, got a"),
        (("inputs", 1, "name"), "x", "`inputs[1].name` must be another name than that of the others, got 'x'"),
        (("name",), "\ud800", "`name` must be a text of whole characters, got '\\ud800'"),
        (("lengths",), {"x": "T"}, "`a key of lengths` must be an input of whole numbers, got 'x'"),
        (("graphs", 0, "ranges", "T", 0), 2**31 - 1, "`graphs[0].ranges.T[0]` must be a whole number, 1 to 1000000"),
        (("producer",), "x" * 2001, "`producer` must be a text of 1 to 2000 characters, got 'xxx"),
        (("lengths",), {"z": "T"}, "`a key of lengths` must be the name of an input, got 'z'"),
        (("states", "h0"), "y", "`states.h0` must be an output"),
        (("states", "h0"), "h0", "`states.h0` must be the name of an output, got 'h0'"),
        (("sha256",), {"../x": "0" * 64}, "`a key of sha256` must be the plain name of a file in the folder"),
        (("sha256",), {"C:x": "0" * 64}, "`a key of sha256` must be the plain name of a file in the folder"),
        (("sha256", "weights.bin"), "0" * 63, "`sha256.weights.bin` must be 64 hexadecimal digits"),
        (("version",), True, "`version` must be a whole number"),
        (("version",), 99, "has version 99; this deploy-rnn reads up to 2: install a newer one."),
    ],
)  # fmt: skip
def test_the_message_says_which_field(place: Any, value: Any, message: str, tmp_path: Path) -> None:
    if place == ("states", "h0") and value == "y":
        manifest = changed(("outputs", 0, "shape"), ["B", 4])
        manifest["outputs"][0]["time"] = None
        manifest["states"]["h0"] = "y"
        write(tmp_path, manifest)
    else:
        write(tmp_path, changed(place, value))
    with pytest.raises(BundleError, match=re.escape(message)):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not JSON: it is nested too deeply"),
        ('{"version": 2, "version": 1}', "is not JSON: an object has the key 'version' twice"),
        ('{"version": 2, "name": NaN}', "is not JSON: JSON has no NaN"),
        ('{"version": -Infinity}', "is not JSON: JSON has no -Infinity"),
        ('{"version": ' + "9" * 10_000 + "}", "is not JSON: "),
        (b"\xff\xfe{}", "is not JSON: "),
        (b"\xef\xbb\xbf{}", "is not JSON: "),
        ("", "is not JSON: "),
        (" " * 2_000_000, r"cannot be read: it has 2,000,000 bytes, and may have 1,048,576\."),
    ],
)
def test_text_that_is_not_a_manifest(text: str | bytes, message: str, tmp_path: Path) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=message):
        Manifest.read(tmp_path)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link_to(target: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return link


def _folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _secret(path: Path) -> None:
    (path.parent.parent / "secret").write_bytes(b"a secret")
    _link_to("../secret")(path)


@pytest.mark.parametrize("name", ["weights.bin", "manifest.json"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pipe, "it is not an ordinary file"),
        (_folder_there, "it is not an ordinary file"),
        (_link_to("/dev/zero"), "leads out of the folder|not an ordinary file"),
        (_link_to("weights.bin"), "circle|[Ss]ymbolic"),
        (_link_to("missing"), "is missing|lacks"),
        (_secret, "leads out of the folder|is not JSON"),
    ],
)
def test_what_is_not_a_file_of_the_folder_is_not_opened(
    spoil: Any, message: str, name: str, folder: Path
) -> None:
    if name == "manifest.json" and message.startswith("circle"):
        return
    spoil(folder / name)
    with pytest.raises(BundleError, match=message) as raised:
        checked_manifest(folder)
    # sha256 of "a secret"
    assert "5ba0d5c4" not in str(raised.value)


def test_links_within_the_folder_and_of_a_cache_of_downloads(folder: Path, tmp_path: Path) -> None:
    """Kubernetes mounts files as links into a folder within; huggingface_hub, as links to files that lie together."""
    (folder / "..data").mkdir()
    (folder / "weights.bin").rename(folder / "..data" / "weights.bin")
    (folder / "weights.bin").symlink_to("..data/weights.bin")
    checked_manifest(folder)
    blobs = tmp_path / "blobs"
    folder.rename(blobs)
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for name in ("manifest.json", "scan.onnx", "unrolled-8.onnx", "weights.bin"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    checked_manifest(snapshot)


def test_a_bundle_that_is_moved_meanwhile_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_files, "PAUSE_SECONDS", 0.0)
    aside = tmp_path / "aside"
    folder.rename(aside)

    def read(target: Path) -> Manifest:
        try:
            return Manifest.read(target)
        except BundleError:
            aside.rename(folder)
            raise

    assert read_settled(folder, read).name == "tagger"


def test_a_bundle_that_stays_damaged_is_refused_soon(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_files, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(bundle_files, "SETTLE_SECONDS", -1.0)
    (folder / "weights.bin").write_bytes(WEIGHTS[:-1])
    attempts: list[int] = []

    def read(target: Path, *, write: bool) -> None:
        attempts.append(1)
        if write:
            (folder / "more").write_bytes(bytes(len(attempts)))
        Manifest.read(target).check(target)

    with pytest.raises(BundleError, match="is not the file that was exported"):
        read_settled(folder, lambda target: read(target, write=False))
    assert len(attempts) == 1
    with pytest.raises(BundleError, match="was being written all the time"):
        read_settled(folder, lambda target: read(target, write=True))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    (folder / "weights.bin").chmod(0)
    with pytest.raises(BundleError, match=r"weights\.bin' cannot be read: Permission denied"):
        checked_manifest(folder)
