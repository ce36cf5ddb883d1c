"""`replace_file`: whole or not at all."""

from pathlib import Path

import pytest

from deploy_rnn.files import replace_file


def test_the_file_appears_with_what_was_written(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"

    def write(path: Path) -> str:
        path.write_text("new", encoding="utf-8")
        assert not target.exists()
        assert path.parent == tmp_path  # moving within a folder is atomic
        return "result"

    assert replace_file(target, write) == "result"
    assert target.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("old", encoding="utf-8")

    def write(path: Path) -> None:
        path.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(target, write)
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]
