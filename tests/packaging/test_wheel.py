"""The wheel: what is in it, what is not, and what a package index shows of it."""

import re
import shutil
import subprocess
import sys
import tomllib
from email import message_from_bytes
from email.message import Message
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("deploy_rnn", "export", "serving", "examples")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Built from a copy of the sources, so that no leftover of an earlier build can be in it."""
    checkout = tmp_path_factory.mktemp("checkout")
    for folder in SOURCES:
        without_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, checkout / folder, ignore=without_caches)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, checkout)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=checkout, check=True, capture_output=True)
    (path,) = (checkout / "dist").glob("*.whl")
    return ZipFile(path)


def metadata(wheel: ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def test_every_module_is_in_it_and_the_example_is_not(wheel: ZipFile) -> None:
    modules = {name for name in wheel.namelist() if name.endswith(".py")}
    expected = set()
    for folder in ("deploy_rnn", "export", "serving"):
        for path in (ROOT / folder).rglob("*.py"):
            inside = PurePosixPath(path.relative_to(ROOT))
            expected.add(str(inside if folder == "deploy_rnn" else "deploy_rnn" / inside))
    assert modules == expected
    assert not [name for name in wheel.namelist() if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    "name",
    [
        "py.typed", "bundle.schema.json", "serving/rest/openapi.json", "serving/rest/page/index.html",
        "serving/grpc/oip.binpb",
    ],
)  # fmt: skip
def test_the_data_that_is_read_at_run_time_is_in_it(wheel: ZipFile, name: str) -> None:
    assert f"deploy_rnn/{name}" in wheel.namelist()


def test_what_an_index_shows(wheel: ZipFile) -> None:
    """Its links and pictures must work outside the repository."""
    shown = metadata(wheel)
    assert shown["Author"] == "deploy-rnn developers"
    assert {url.partition(",")[0] for url in shown.get_all("Project-URL", [])} >= {
        "Homepage", "Documentation", "Source", "Issues", "Changelog",
    }  # fmt: skip
    assert shown["Description-Content-Type"] == "text/markdown"
    readme = str(shown.get_payload())
    without_code = re.sub(r"```.*?```", "", readme, flags=re.DOTALL)
    links = re.findall(r"\]\(([^)]+)\)", without_code)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", without_code)
    assert pictures
    for picture in pictures:
        assert picture.startswith(
            "https://raw.githubusercontent.com/deploy-rnn/deploy-rnn/main/docs/"
        )


def test_every_extra_that_an_error_names_exists() -> None:
    """The messages, the README and the docs name extras; a misspelt one installs nothing and says so softly."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    sources = [path for folder in SOURCES[:3] for path in (ROOT / folder).rglob("*.py")]
    named = set()
    for path in [*pages, *sources]:
        for extras in re.findall(
            r"(?:deploy-rnn|'\.)\[([a-z,-]+)\]", path.read_text(encoding="utf-8")
        ):
            named |= set(extras.split(","))
    assert "serving" in named
    assert named - {"extra"} <= set(PROJECT["optional-dependencies"])


def test_the_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    version, _, date = headings[1].partition(" - ")
    assert version == PROJECT["version"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
