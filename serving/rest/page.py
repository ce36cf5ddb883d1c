"""Pages for people: the server's own at `/`, and any that its operator adds."""

import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MEDIA_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Nothing from other origins, and no scripts in the markup: the names of models may come from strangers."""

# What a name may consist of: it becomes a part of a path, and stands in the markup.
NAME = re.compile(r"[\w.-]+", re.ASCII)

MODEL = re.compile(rb'<meta name="deploy-rnn-model" content="([^"]*)">')
"""In the index.html of a page that is made for one model: its name, in HTML."""

LINKS = b"<!-- links to other pages -->"
"""Where the server's page has the links to those of its operator."""


def routes(pages: Sequence[Path] = ()) -> list[Route]:
    """`/` with its files at `/page/FILE`, and the files of each folder in `pages` at `/pages/FOLDER/FILE`.

    All files are read now.

    Raises:
        ValueError: a folder without an index.html, with a name that does not fit into a URL, or with a type of file
            that is not one of `MEDIA_TYPES`.
    """
    own_files = _read_files(resources.files(__package__).joinpath("page"))
    index = own_files.pop("index.html")
    page_routes = []
    for folder in pages:
        name = folder.resolve().name
        files = _read_page(folder, name)
        index = index.replace(LINKS, _link(name, files["index.html"]) + LINKS)
        page_routes.append(_route(f"/pages/{name}/", "index.html", files.pop("index.html")))
        page_routes += [_route(f"/pages/{name}/{file}", file, body) for file, body in files.items()]
    own_routes = [_route(f"/page/{file}", file, body) for file, body in own_files.items()]
    return [_route("/", "index.html", index), *own_routes, *page_routes]


def _link(name: str, index: bytes) -> bytes:
    """The link to a page; hidden until the model is served that it is made for, if it is made for one."""
    match = MODEL.search(index)
    if match is None:
        return f'<a href="pages/{name}/">{name}</a> '.encode()
    return b'<a href="pages/%b/" data-model="%b" hidden>%b</a> ' % (
        name.encode(),
        match[1],
        name.encode(),
    )


def _read_page(folder: Path, name: str) -> dict[str, bytes]:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"page {str(folder)!r}: the name of its folder must have only letters, digits, '.', '-', '_'."
        )
    if not (folder / "index.html").is_file():
        raise ValueError(f"{str(folder)!r} is not a page: index.html is missing.")
    files = _read_files(folder)
    for file in files:
        if not NAME.fullmatch(file) or _extension(file) not in MEDIA_TYPES:
            raise ValueError(
                f"page {str(folder)!r}: {file!r} must have only letters, digits, '.', '-', '_', and end in one of "
                f"{', '.join(MEDIA_TYPES)}."
            )
    return files


def _read_files(folder: Traversable) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    return dict(sorted(files.items()))


def _extension(file: str) -> str:
    return file.rpartition(".")[2]


def _route(path: str, file: str, body: bytes) -> Route:
    media_type = MEDIA_TYPES[_extension(file)]

    async def answer(request: Request) -> Response:
        return Response(body, headers=HEADERS, media_type=media_type)

    return Route(path, answer)
