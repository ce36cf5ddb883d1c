"""The page at `/`: its files, and what a browser may do with them."""

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Nothing from elsewhere, and no script in the markup: names of models are a stranger's words."""


def routes() -> list[Route]:
    """`/`, and the files that it consists of at `/page/NAME`."""
    names = sorted(file.name for file in resources.files(__package__).joinpath("page").iterdir())
    return [_route("/", "index.html"), *(_route(f"/page/{name}", name) for name in names if name != "index.html")]


def _route(path: str, name: str) -> Route:
    body = resources.files(__package__).joinpath("page", name).read_bytes()
    kind = MEDIA_TYPES[name.rpartition(".")[2]]

    async def answer(request: Request) -> Response:
        return Response(body, headers=HEADERS, media_type=kind)

    return Route(path, answer)
