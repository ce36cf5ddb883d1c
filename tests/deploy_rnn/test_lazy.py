"""`lazy_names`: public names that are loaded when they are first used."""

import sys
from pathlib import Path

import pytest

from deploy_rnn.lazy import lazy_names


def test_a_folder_that_hides_a_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes any folder for a package, and says of what it hides that a name is missing."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "__init__.py").touch()
    (tmp_path / "home" / "code.py").write_text("import hidden\nhidden.language\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as raised:
        lazy_names("home", {"run": "code"}, "torch")("run")
    assert str(raised.value) == (
        "`home.run` cannot be loaded: module 'hidden' has no attribute 'language'; Python takes the folder "
        f"{str(tmp_path / 'hidden')!r} for a package: rename it, or start elsewhere."
    )
    for name in ("hidden", "home"):
        sys.modules.pop(name)
