"""The README and docs: their code runs, their figures are those of the JSON, their commands and links exist."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.reporting import tables
from deploy_rnn.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks, in order, as one session; a comment after `print(...)` is what it prints.

    The client's code is tested in tests/serving/test_readme.py.
    """
    monkeypatch.chdir(tmp_path)
    without_client = re.sub(r"## Serve it\n.*?(?=\n## )", "", README, flags=re.DOTALL)
    code = "\n".join(re.findall(r"```python\n(.*?)```", without_client, re.DOTALL))
    assert code
    exec(compile(code, "README.md", "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert promised
    assert capsys.readouterr().out.splitlines()[-len(promised) :] == promised


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python block of the section is the file that the section names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    section = README.partition("### From the command line")[2].partition("\n## ")[0]
    names = re.findall(r"`(\w+\.py)`", section)
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for name, text in zip(names, blocks, strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    commands = re.findall(r"^deploy-rnn (.*)$", section, re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"export", "inspect", "verify"}
    for command in commands:
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, result.output
    sys.modules.pop("tagger")


def test_the_figures_are_those_that_were_measured() -> None:
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert "<!-- /" in text
        assert tables.fill(text) == text, (
            f"{page.name} differs from its JSON; run python -m benchmarks.reporting.tables"
        )


def test_every_make_target_exists() -> None:
    targets = set(
        re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE)) <= targets
    assert {"install", "demo", "test", "lint", "bench", "cuda"} <= targets


def test_every_linked_file_exists() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("[!_]*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
