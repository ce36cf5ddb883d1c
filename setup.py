"""What pyproject.toml cannot say: what stays out of the wheel, and the README as a package index shows it."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
REPOSITORY = "https://github.com/deploy-rnn/deploy-rnn"
RAW_FILES = "https://raw.githubusercontent.com/deploy-rnn/deploy-rnn/main"


class BuildWithoutExamples(build_py):
    """A wheel is for production: the example, its checkpoint and its training stay in the repository."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.editable_mode:
            self.packages = [name for name in self.packages if ".examples" not in name]


def with_absolute_links(markdown: str) -> str:
    """Make the links of the README work outside the repository: `[text](docs/x.md)`, `![picture](docs/x.svg)`."""

    def absolute(match: re.Match[str]) -> str:
        is_picture = match["mark"] == "!"
        base = RAW_FILES if is_picture else f"{REPOSITORY}/blob/main"
        return f"{match['mark']}[{match['text']}]({base}/{match['path']})"

    link = r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:][^):]*)\)"
    return re.sub(link, absolute, markdown)


setup(
    long_description=with_absolute_links((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    cmdclass={"build_py": BuildWithoutExamples},
)
