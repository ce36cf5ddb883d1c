"""The README's code for a server: its model is exported, served, and asked as printed."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy_rnn.cli import main
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling.model import Model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section() -> str:
    return README.partition("## Serve it\n")[2].partition("\n## ")[0]


def test_triton_s_client(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_server: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A comment after `print(...)` is what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (source,) = re.findall(r"```python\n(# tagger\.py\n.*?)```", README, re.DOTALL)
    (tmp_path / "tagger.py").write_text(source, encoding="utf-8")
    (export,) = re.findall(r"^deploy-rnn (export .* -o tagger)$", README, re.MULTILINE)
    exported = CliRunner().invoke(main, export.split())
    sys.modules.pop("tagger", None)
    assert exported.exit_code == 0, exported.output
    assert "deploy-rnn serve tagger\n" in section()

    code = "\n".join(re.findall(r"```python\n(.*?)```", section(), re.DOTALL))
    bundle = tmp_path / "tagger"
    repository = Repository(bundle, lambda path, name: Model(path, name=name, threads=1))
    repository.load_all()
    with run_server(repository) as server:
        exec(compile(code.replace("localhost:8000", server.http_address), "README.md", "exec"), {})
    promised_lines = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert promised_lines
    assert capsys.readouterr().out.splitlines() == promised_lines
