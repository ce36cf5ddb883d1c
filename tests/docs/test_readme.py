"""The README and docs: their code runs, their figures are those of the JSON, their commands and links exist."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import deploy_rnn
from benchmarks.reporting import tables
from deploy_rnn.cli import main
from deploy_rnn.export import export_bundle, export_onnx
from deploy_rnn.export.cli.commands import export as export_command

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]

RUN_AS_PRINTED = [README, DOCS / "get-started.md", DOCS / "from-torch-onnx.md"]
"""Pages whose code is one session. The README's section on serving needs a server: tests/serving/test_readme.py."""


@dataclass(frozen=True)
class Page:
    """The code blocks of a page, in order.

    Attributes:
        files: name -> text of each Python block that begins with `# NAME.py`.
        session: all other Python blocks, one after the other.
        commands: the lines of its shell blocks that call `deploy-rnn`, without that name and without comments.
    """

    files: dict[str, str]
    session: str
    commands: list[str]

    @classmethod
    def read(cls, path: Path, section: str | None = None) -> "Page":
        """Read a page; with `section`, only what is below that heading, up to the next of its level."""
        text = path.read_text(encoding="utf-8")
        if section is not None:
            level = section.partition(" ")[0]
            text = text.partition(f"{section}\n")[2].partition(f"\n{level} ")[0]
        files = {}
        session = []
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            named = re.match(r"# (\w+\.py)\n", block)
            if named:
                files[named[1]] = block
            else:
                session.append(block)
        commands = []
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL):
            lines = block.replace("\\\n", " ")
            commands += re.findall(r"^deploy-rnn (.*?)(?:\s+#.*)?$", lines, re.MULTILINE)
        return cls(files, "\n".join(session), commands)

    def write_files(self, folder: Path) -> None:
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, on Python's path; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) in map(str, tmp_path.glob("*.py")):
            del sys.modules[name]


@pytest.mark.parametrize("path", RUN_AS_PRINTED, ids=lambda path: path.stem)
def test_the_code_runs(path: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks, in order, as one session; a comment after `print(...)` is what it prints."""
    page = Page.read(path)
    page.write_files(workplace)
    session = page.session
    if path == README:
        session = session.replace(Page.read(path, "## Serve it").session, "")
    exec(compile(session, path.name, "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", session, re.MULTILINE)
    assert promised
    assert capsys.readouterr().out.splitlines()[-len(promised) :] == promised


@pytest.mark.parametrize("path", RUN_AS_PRINTED, ids=lambda path: path.stem)
def test_the_commands_run(path: Path, workplace: Path) -> None:
    """But `serve`, which is tested with the servers, and `check`, which compiles for a minute (test_cli.py)."""
    page = Page.read(path)
    page.write_files(workplace)
    commands = [line for line in page.commands if line.split()[0] not in ("serve", "check")]
    if path == README:
        assert {command.split()[0] for command in commands} == {"export", "inspect", "verify"}
    for command in commands:
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, f"{command}: {result.output}"


def test_the_figures_are_those_that_were_measured() -> None:
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert "<!-- /" in text
        assert tables.fill(text) == text, (
            f"{page.name} differs from its JSON; run python -m benchmarks.reporting.tables"
        )


def test_every_measured_table_is_on_a_page() -> None:
    """A section that no page shows would be a figure that nobody can check."""
    text = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert [name for name in tables.sections() if f"<!-- {name} -->" not in text] == []


def test_nothing_is_called_a_floor() -> None:
    """The matrix products alone can be slower than our best, so they are no lower limit."""
    for page in [*PAGES, *(ROOT / "benchmarks").rglob("*.py")]:
        assert not re.search(r"\bfloor\b", page.read_text(encoding="utf-8")), page.name


def test_every_make_target_exists() -> None:
    targets = set(
        re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for page in PAGES:
        named = re.findall(r"(?:`|^)make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, page.name
    assert {"install", "demo", "test", "lint", "bench", "cuda", "docs"} <= targets


def test_every_linked_file_and_heading_exists() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8")):
            file, _, heading = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name}: {link}"
            if heading:
                assert heading in headings(target), f"{page.name}: {link}"


def headings(page: Path) -> set[str]:
    """The anchors of a page: those that it names, and those that GitHub and the site make of its headings."""
    without_code = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    named = re.findall(r'^<a id="([\w-]+)"></a>$', without_code, re.MULTILINE)
    return {*named} | {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles
    }


def test_the_errors_of_the_troubleshooting_page_are_ours() -> None:
    """Each heading quotes an error; it must be in the code, or a reader would look for it in vain."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    ours, _, _ = page.partition("## Errors of PyTorch")
    texts = messages_in_the_code()
    quoted = re.findall(r"^### `(.*)`$", ours, re.MULTILINE)
    assert len(quoted) > 20
    for text in quoted:
        parts = [part.strip() for part in text.split("…") if part.strip()]
        found = any(all(part in message for part in parts) for message in texts)
        assert found, text


def messages_in_the_code() -> list[str]:
    """Every text in the code, with `…` for what an f-string fills in, and without backticks."""
    found = []
    for folder in ("deploy_rnn", "export", "serving"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [
                        part.value if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    ]
                    found.append("".join(map(str, parts)).replace("`", ""))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value.replace("`", ""))
    return found


@pytest.mark.parametrize("function", [export_onnx, export_bundle], ids=lambda each: each.__name__)
def test_every_export_option_is_in_its_table(function: Any) -> None:
    table = (DOCS / "export-options.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    keywords = {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert keywords <= documented


def test_every_flag_of_the_table_exists() -> None:
    table = (DOCS / "export-options.md").read_text(encoding="utf-8")
    flags = {option for parameter in export_command.params for option in parameter.opts}
    assert set(re.findall(r"`(--[\w-]+)", table)) <= flags


def test_every_public_name_is_in_the_api_reference() -> None:
    """But the errors, which one entry shows as a tree."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, re.MULTILINE))
    public = {
        name
        for package in (deploy_rnn, deploy_rnn.export, deploy_rnn.serving)
        for name in package.__all__
        if not name.endswith("Error")
    }
    assert public - {"__version__", "export", "serving"} <= described


def test_every_page_is_on_the_site() -> None:
    """In the menu of mkdocs.yml, which is YAML with tags that a plain reader does not know."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r"([\w-]+\.md)$", menu, re.MULTILINE))
    assert named == {page.name for page in DOCS.glob("*.md")} | {"index.md", "changelog.md"}
