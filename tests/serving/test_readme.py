"""The README's code for a server, run against one."""

import re
from pathlib import Path
from typing import Any

import pytest

from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling.model import Model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section() -> str:
    return README.partition("## Serve it\n")[2].partition("\n## ")[0]


def test_triton_s_client(
    highlighter: Path, run_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comment after `print(...)` is what it prints."""
    assert f"deploy-rnn serve build/demo/{highlighter.name} " in section()
    code = "\n".join(re.findall(r"```python\n(.*?)```", section(), re.DOTALL))
    repository = Repository(highlighter, lambda path, name: Model(path, name=name, threads=1))
    repository.load_all()
    with run_server(repository) as server:
        exec(compile(code.replace("localhost:8000", server.http_address), "README.md", "exec"), {})
    promised_lines = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert promised_lines
    assert capsys.readouterr().out.splitlines() == promised_lines
