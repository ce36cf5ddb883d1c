"""What the tests of the engine share."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def keep_graphs() -> Callable[..., Path]:
    """bundle, folder, names of files -> a copy of the bundle in the folder, with these graphs only."""

    def keep(bundle: Path, folder: Path, *files: str) -> Path:
        shutil.copytree(bundle, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["graphs"] = [graph for graph in manifest["graphs"] if graph["file"] in files]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return keep
