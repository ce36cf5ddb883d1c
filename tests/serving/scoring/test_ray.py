"""`--engine ray`: Ray Data gives the same answers. `make ray` installs Ray and runs this."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy_rnn.serving import score
from deploy_rnn.serving.scoring.window import WindowWork

pytestmark = pytest.mark.ray

RAY_PYTHON = os.environ.get("RAY_PYTHON", sys.executable)
"""The Python of an environment with Ray."""


def test_ray_goes_on_after_a_local_run_and_gives_the_same_bytes(
    bundle: Path,
    rows: list[dict[str, Any]],
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_lines([*rows[:50], *["no"] * 3, *rows[50:]])
    options: dict[str, Any] = {"window": 20, "processes": 1}
    expected = tmp_path / "expected.jsonl"
    score(bundle, path, expected, errors=tmp_path / "expected.errors", **options)
    output = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        write = WindowWork.write

        def interrupt(self: Any, span: Any, *rest: Any) -> Any:
            if span.first == 40:
                raise KeyboardInterrupt
            return write(self, span, *rest)

        patch.setattr(WindowWork, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score(bundle, path, output, **options)
    command = [RAY_PYTHON, "-m", "deploy_rnn", "score", str(bundle), str(path), "-o", str(output)]
    command += ["--errors", str(tmp_path / "errors"), "--window", "20", "--engine", "ray"]
    finished = subprocess.run(
        [*command, "--processes", "2"],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert finished.returncode == 3, finished.stderr
    assert "103 rows in " in finished.stderr
    assert "; 40 of them were done before; 3 failed" in finished.stderr
    assert output.read_bytes() == expected.read_bytes()
    assert (tmp_path / "errors").read_bytes() == (tmp_path / "expected.errors").read_bytes()
