"""The protocol over HTTP, as an ASGI application."""

import asyncio
from collections.abc import Callable, Set
from concurrent.futures import Future
from importlib import resources
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy_rnn.errors import ClosedError, DeadlineError, DeployError, TooLargeError, UnsupportedError

from ..metrics import CONTENT_TYPE, Metrics
from ..protocol import oip
from ..protocol.status import status
from ..repository import Repository
from ..scheduling.request import Response as ModelResponse
from ..settings import Settings
from ..token import REFUSAL, is_authorized
from . import page
from .binary import HEADER_LENGTH, parse_json
from .compression import chosen, compress, decompress
from .messages import InferRequest, read, write

# Reading this many bytes of JSON takes about 2 ms; a larger body is read in a thread, so that others need not wait.
READ_IN_A_THREAD = 128 * 1024

# Below this an answer fits into one packet anyway.
COMPRESS_FROM = 1024

NOT_DONE = ("systemsharedmemory", "cudasharedmemory", "trace", "logging")
Result = TypeVar("Result")
OPEN = ("/v2/health/live", "/v2/health/ready")
"""What needs no token, beside the page, which asks for one: an orchestrator asks it."""


def make_app(repository: Repository, settings: Settings | None = None) -> ASGIApp:
    """The application of a server's models.

    Any ASGI server runs it. It has no lifespan: who made `repository` loads and closes it.
    """
    rest = Rest(repository, settings or Settings())
    errors: dict[Any, Any] = {
        HTTPException: _http_error,
        ClientDisconnect: _client_disconnected,
        DeployError: _error,
        Exception: _error,
    }
    page_routes = page.routes()
    app = Starlette(routes=[*rest.routes(), *page_routes], exception_handlers=errors)
    return Guard(app, rest.settings.token, {*OPEN, *(route.path for route in page_routes)})


class Guard:
    """Refuses requests without the token, but to the paths in `open`; a pure ASGI middleware, which costs next to
    nothing."""

    def __init__(self, app: ASGIApp, token: str | None, open: Set[str]) -> None:
        self._app, self._token, self._open = app, token, open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] not in self._open:
            authorization = dict(scope["headers"]).get(b"authorization")
            if not is_authorized(authorization, self._token):
                app = JSONResponse({"error": REFUSAL}, 401, {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)


class Rest:
    """The endpoints; docs/serving.md lists them."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self.repository, self.settings = repository, settings
        self._metrics = Metrics(repository)

    def routes(self) -> list[Route]:
        model = "/v2/models/{model}"
        found = [
            Route("/openapi.json", _openapi),
            Route("/metrics", self.metrics),
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/stats", self.all_statistics),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", self.load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self.unload, methods=["POST"]),
            Route(f"{model}/trace/setting", _not_implemented, methods=["GET", "POST"]),
        ]
        for prefix in (model, f"{model}/versions/{{version}}"):
            found += [
                Route(prefix, self.model_metadata),
                Route(f"{prefix}/ready", self.model_ready),
                Route(f"{prefix}/config", self.model_config),
                Route(f"{prefix}/stats", self.model_statistics),
                Route(f"{prefix}/infer", self.infer, methods=["POST"]),
            ]
        return found + [
            Route(f"/v2/{part}{{rest:path}}", _not_implemented, methods=["GET", "POST"]) for part in NOT_DONE
        ]

    async def server_metadata(self, request: HTTPRequest) -> Response:
        return JSONResponse(oip.server_metadata())

    async def live(self, request: HTTPRequest) -> Response:
        """That this is answered at all is the news: the loop turns."""
        return JSONResponse({"live": True})

    async def ready(self, request: HTTPRequest) -> Response:
        ready = self.repository.ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def model_ready(self, request: HTTPRequest) -> Response:
        name = self._model(request).name
        ready = self.repository.ready()
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503)

    async def model_metadata(self, request: HTTPRequest) -> Response:
        return JSONResponse(oip.model_metadata(self._model(request)))

    async def model_config(self, request: HTTPRequest) -> Response:
        return JSONResponse(oip.model_config(self._model(request), self.repository.limits))

    async def model_statistics(self, request: HTTPRequest) -> Response:
        return JSONResponse({"model_stats": [oip.model_statistics(self._model(request))]})

    async def all_statistics(self, request: HTTPRequest) -> Response:
        return JSONResponse({"model_stats": [oip.model_statistics(model) for model in self.repository.models()]})

    async def index(self, request: HTTPRequest) -> Response:
        body = await self._body(request)
        ready = parse_json(body).get("ready") is True if body.strip() else False
        return JSONResponse(await asyncio.to_thread(self.repository.index, ready=ready))

    async def load(self, request: HTTPRequest) -> Response:
        body = await self._body(request)
        if body.strip() and parse_json(body).get("parameters"):
            raise UnsupportedError("a model is loaded as its bundle is; `parameters` of a load are not done.")
        await asyncio.to_thread(self.repository.load, request.path_params["model"])
        return Response()

    async def unload(self, request: HTTPRequest) -> Response:
        await self._body(request)
        await asyncio.to_thread(self.repository.unload, request.path_params["model"])
        return Response()

    async def metrics(self, request: HTTPRequest) -> Response:
        return Response(await asyncio.to_thread(self._metrics.text), headers={"Content-Type": CONTENT_TYPE})

    async def infer(self, request: HTTPRequest) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        self.repository.model(name, version)
        body, length = await self._body(request), request.headers.get(HEADER_LENGTH)
        asked = await _in_thread_if_large(len(body), read, body, length, self.settings)
        future = self.repository.submit(name, version, asked.request)
        async with _deadline(self.settings.request_seconds, "the answer took"):
            answer = await self._waited(future)
        size = sum(array.nbytes for array in answer.outputs.values())
        return await _in_thread_if_large(size, _answer, asked, name, answer, request.headers.get("Accept-Encoding", ""))

    async def _waited(self, future: "Future[ModelResponse]") -> ModelResponse:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not self.repository.stopping():
                raise
            raise ClosedError("the server stopped before this was answered.") from None

    async def _body(self, request: HTTPRequest) -> bytes:
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        async with _deadline(self.settings.body_seconds, "the body took"):
            body = await _received(request, self.settings.max_bytes)
        if not encoding:
            return body
        return await _in_thread_if_large(len(body), decompress, body, encoding, self.settings.max_bytes)

    def _model(self, request: HTTPRequest) -> Any:
        return self.repository.model(request.path_params["model"], request.path_params.get("version", ""))


class _deadline:
    """A time limit whose passing is a `DeadlineError`."""

    def __init__(self, seconds: float, what: str) -> None:
        self._timeout, self._message = asyncio.timeout(seconds), f"{what} more than {seconds:g} s."

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            raise DeadlineError(self._message) from None


async def _received(request: HTTPRequest, max_bytes: int) -> bytes:
    """
    Raises:
        TooLargeError: the body has more than `max_bytes`; the rest is not read.
    """
    pieces, size = [], 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise TooLargeError(f"the body has more than {max_bytes} bytes, which is the limit.")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _in_thread_if_large(size: int, function: Callable[..., Result], *args: Any) -> Result:
    """Here if that is quick, in a thread if not."""
    return await asyncio.to_thread(function, *args) if size > READ_IN_A_THREAD else function(*args)


def _answer(asked: InferRequest, name: str, answer: Any, accepted: str) -> Response:
    body, headers = write(asked, name, answer)
    encoding = chosen(accepted, binary=HEADER_LENGTH in headers) if len(body) >= COMPRESS_FROM else None
    if encoding:
        body, headers["Content-Encoding"] = compress(body, encoding), encoding
    return Response(body, headers=headers)


async def _not_implemented(request: HTTPRequest) -> Response:
    raise UnsupportedError(f"{request.url.path} is not done here: shared memory, tracing and log settings are not.")


async def _openapi(request: HTTPRequest) -> Response:
    return Response(resources.files(__package__).joinpath("openapi.json").read_bytes(), media_type="application/json")


async def _http_error(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: f"there is no {request.url.path}.", 405: f"{request.url.path} does not take {request.method}."}
    return JSONResponse({"error": words.get(error.status_code, error.detail)}, error.status_code, error.headers)


async def _client_disconnected(request: HTTPRequest, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _error(request: HTTPRequest, error: Exception) -> Response:
    found = status(error)
    # The rest of a body that was not read to its end would stand in the way of the next request.
    headers = {"Connection": "close"} if found.http in (413, 504) else None
    return JSONResponse({"error": found.message}, found.http, headers)
