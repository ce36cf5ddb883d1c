"""A hook of mkdocs: the README is the site's home, and links to code lead to the repository.

Pages link to each other and to code by relative paths, so that they work in a checkout and on GitHub too.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = "docs"

GENERATED = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
"""Page of the site -> the file at the root of the repository that it shows."""


def on_files(files: Files, config: Any) -> Files:
    for page, source in GENERATED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    is_generated = page.file.src_uri in GENERATED
    folder = "." if is_generated else DOCS
    shown = {source: name for name, source in GENERATED.items()}

    def relink(match: re.Match[str]) -> str:
        path, mark, anchor = match["target"].partition("#")
        parts: list[str] = []
        for part in (PurePosixPath(folder) / path).parts:
            if part == "..":
                parts.pop()
            elif part != ".":
                parts.append(part)
        inside = "/".join(parts)
        if inside in shown:
            target = shown[inside]
        elif inside.startswith(f"{DOCS}/"):
            target = inside.removeprefix(f"{DOCS}/")
        else:
            kind = "tree" if (ROOT / inside).is_dir() else "blob"
            target = f"{config['repo_url']}/{kind}/main/{inside}"
        return f"]({target}{mark}{anchor})"

    # A link in a code block is left alone: those blocks are cut out first.
    blocks = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    link = r"\]\((?P<target>[^):#][^):]*)\)"
    return "".join(
        block if block.startswith("```") else re.sub(link, relink, block) for block in blocks
    )
