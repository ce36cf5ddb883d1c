"""What the module for browsers has in common with the rest: it needs neither node nor a browser to compare."""

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path

from deploy_rnn import bundle, tensor_spec
from deploy_rnn.metadata import PREFIX, FileMetadata
from deploy_rnn.tensor_spec import IndexRange

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"


def constant(name: str, text: str) -> str:
    match = re.search(rf"^(?:export )?const {name} = (.*?);", text, re.MULTILINE | re.DOTALL)
    assert match is not None, name
    return match[1]


def strings(name: str, text: str) -> set[str]:
    """Those of a list."""
    return set(re.findall(r'"(\w+)"', constant(name, text)))


def test_the_manifest_is_that_of_this_release() -> None:
    """A change of the manifest is a change of the module."""
    text = (WEB / "src" / "manifest.js").read_text(encoding="utf-8")
    names = {field.name for field in fields(bundle.Manifest)}
    assert int(constant("VERSION", text)) == bundle.VERSION
    assert strings("FIELDS", text) == names
    assert strings("FORMS", text) == bundle.FORMS
    assert strings("PRECISIONS", text) == bundle.PRECISIONS
    assert strings("DTYPES", text) == bundle.DTYPES
    assert float(constant("MOST_LEAST", text)) == tensor_spec.MOST_LEAST
    graph_names = {field.name for field in fields(bundle.Graph)}
    read = re.search(r"function readGraph\(.*?\n}", text, re.DOTALL)
    assert read is not None
    assert all(f'"{name}"' in read[0] for name in graph_names)


def test_the_metadata_has_its_name() -> None:
    metadata = (WEB / "src" / "onnx_file.js").read_text(encoding="utf-8")
    written = FileMetadata(index_ranges={"x": IndexRange(0, 1)}).to_properties()
    assert written.keys() == {PREFIX + "index_ranges"}
    assert json.loads(constant("INDEX_RANGES", metadata)) == PREFIX + "index_ranges"
    assert json.loads(constant("TABLE_ROWS", metadata)) == PREFIX + "table_rows"


def test_the_versions_are_those_of_the_repository() -> None:
    package = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert package["version"] == project["project"]["version"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"onnxruntime-web@{package['dependencies']['onnxruntime-web']}\n" in makefile
    page = (ROOT / "docs" / "browser.md").read_text(encoding="utf-8")
    assert f"deploy-rnn-web-{package['version']}.tgz" in page
    assert f"onnxruntime-web {package['dependencies']['onnxruntime-web']}." in page
