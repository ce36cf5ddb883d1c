"""A repository of models may be called `triton`, and lie where Python looks for modules."""

import importlib
import sys
from pathlib import Path

import pytest

from deploy_rnn.export.torch_onnx import hide_folder_named_triton


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `triton` on Python's path, and no package of that name."""
    if "triton" in sys.modules or importlib.util.find_spec("triton") is not None:
        pytest.skip("the package triton is installed")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    repository = tmp_path / "triton"
    repository.mkdir()
    return repository


@pytest.mark.parametrize("is_imported", [False, True])
def test_a_folder_is_no_package(is_imported: bool, folder: Path) -> None:
    assert importlib.util.find_spec("triton") is not None
    if is_imported:
        importlib.import_module("triton")
    for _ in range(2):
        hide_folder_named_triton()
        with pytest.raises(ImportError):
            importlib.import_module("triton")


def test_a_package_stays(folder: Path) -> None:
    (folder / "__init__.py").touch()
    hide_folder_named_triton()
    assert importlib.import_module("triton").__file__ == str(folder / "__init__.py")
