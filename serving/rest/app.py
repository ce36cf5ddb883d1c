"""The protocol over HTTP, as an ASGI application."""

import asyncio
from collections.abc import Iterator, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from deploy_rnn.errors import DeployError, TooLargeError, UnauthorizedError, UnsupportedError

from ..metrics import CONTENT_TYPE, Metrics
from ..protocol import oip
from ..protocol.inference import Inference, InferRequest, deadline, in_thread_if_large
from ..protocol.status import RETRY_SECONDS, status
from ..repository import Repository
from ..scheduling.request import Response as ModelResponse
from ..settings import Settings
from . import page
from .binary import HEADER_LENGTH, parse_json, too_much_json
from .compression import MAX_RATIO, choose_encoding, compress, decompress
from .messages import read, write
from .other_sites import OwnSite, parse_hosts

# A shorter answer fits into one packet anyway.
MIN_COMPRESSED_BYTES = 1024

UNSUPPORTED = ("systemsharedmemory", "cudasharedmemory", "trace", "logging")
"""Extensions of Triton below /v2 that are answered with 501."""

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")
"""Paths for orchestrators, which have no token."""

POLICY_VIOLATION = 1008
"""The close code of a WebSocket that is refused."""


def make_app(repository: Repository, settings: Settings | None = None) -> ASGIApp:
    """The application of a server's models.

    Any ASGI server runs it. It does nothing in its lifespan: the caller loads and closes `repository`.

    Raises:
        ValueError: a folder in `settings.pages` is not a page, or one of `settings.allowed_hosts` not a host.
    """
    settings = settings or Settings()
    inference = Inference(repository, settings)
    endpoints = Endpoints(inference, Metrics(repository))
    page_routes = page.routes(settings.pages)
    handlers: dict[Any, Any] = {
        HTTPException: _http_error,
        ClientDisconnect: _client_disconnected,
        DeployError: _error,
        Exception: _error,
    }
    app = Starlette(routes=[*endpoints.routes(), *page_routes], exception_handlers=handlers)
    # Its redirect would go to whatever host the client has named.
    app.router.redirect_slashes = False
    # Pages need no token: the server's own asks its user for one.
    page_paths = {route.path for route in page_routes}
    own_site = OwnSite(app, page_paths, parse_hosts(settings.allowed_hosts))
    return Guard(own_site, inference, {*OPEN_PATHS, *page_paths})


class Guard:
    """Lets through only what the application is for: HTTP requests that have the token, or need none.

    A pure ASGI middleware, which costs next to nothing.
    """

    def __init__(self, app: ASGIApp, inference: Inference, open_paths: Set[str]) -> None:
        self._app = app
        self._inference = inference
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._handle_http(scope, receive, send)
        elif scope["type"] == "websocket":
            # Closing before accepting is how ASGI refuses a handshake.
            await WebSocketClose(POLICY_VIOLATION)(scope, receive, send)
        elif scope["type"] == "lifespan":
            # From the ASGI server itself, not from a client.
            await self._app(scope, receive, send)
        else:
            # As ASGI has it for a scope that an application does not know.
            raise RuntimeError(
                f"ASGI scope {scope['type']!r} is not supported; must be 'http' or 'lifespan'."
            )

    async def _handle_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
            message = f"the request has {len(hosts)} headers `Host`; must be one."
            await JSONResponse({"error": message}, 400)(scope, receive, send)
            return
        if scope["path"] not in self._open_paths:
            headers = dict(scope["headers"])
            try:
                self._inference.authorize(headers.get(b"authorization"))
            except UnauthorizedError as error:
                app = JSONResponse({"error": str(error)}, 401, {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)


@dataclass(frozen=True)
class Body:
    """The body of a request as it came.

    Attributes:
        encoding: its Content-Encoding; "" for none.
        max_bytes: that it may have once decompressed.
        only_json: whether nothing but JSON is expected in it.
    """

    data: bytes
    encoding: str
    max_bytes: int
    only_json: bool

    @property
    def most_bytes(self) -> int:
        """How many it may have once decompressed."""
        size = len(self.data)
        return min(size * MAX_RATIO, self.max_bytes) if self.encoding else size

    def decompressed(self) -> bytes:
        with _said_of_json(self.max_bytes) if self.only_json else nullcontext():
            return decompress(self.data, self.encoding, self.max_bytes)


class Endpoints:
    """The paths of the protocol; docs/serving.md lists them."""

    def __init__(self, inference: Inference, metrics: Metrics) -> None:
        self._inference = inference
        self._metrics = metrics
        self._settings = inference.settings

    def routes(self) -> list[Route]:
        model_path = "/v2/models/{model}"
        routes = [
            Route("/openapi.json", _openapi),
            Route("/metrics", self.metrics),
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/stats", self.model_statistics),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", self.load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self.unload, methods=["POST"]),
            Route(f"{model_path}/trace/setting", _not_implemented, methods=["GET", "POST"]),
        ]
        for prefix in (model_path, f"{model_path}/versions/{{version}}"):
            routes += [
                Route(prefix, self.model_metadata),
                Route(f"{prefix}/ready", self.model_ready),
                Route(f"{prefix}/config", self.model_config),
                Route(f"{prefix}/stats", self.model_statistics),
                Route(f"{prefix}/infer", self.infer, methods=["POST"]),
            ]
        for extension in UNSUPPORTED:
            path = f"/v2/{extension}{{rest:path}}"
            routes.append(Route(path, _not_implemented, methods=["GET", "POST"]))
        return routes

    async def server_metadata(self, http_request: HTTPRequest) -> Response:
        return JSONResponse(oip.server_metadata())

    async def live(self, http_request: HTTPRequest) -> Response:
        """Liveness: any reply means that the event loop is running."""
        return JSONResponse({"live": True})

    async def ready(self, http_request: HTTPRequest) -> Response:
        ready = self._inference.ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def model_ready(self, http_request: HTTPRequest) -> Response:
        name, version = _model(http_request)
        ready = self._inference.model_ready(name, version)
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503)

    async def model_metadata(self, http_request: HTTPRequest) -> Response:
        name, version = _model(http_request)
        return JSONResponse(self._inference.model_metadata(name, version))

    async def model_config(self, http_request: HTTPRequest) -> Response:
        name, version = _model(http_request)
        return JSONResponse(self._inference.model_config(name, version))

    async def model_statistics(self, http_request: HTTPRequest) -> Response:
        name, version = _model(http_request)
        statistics = self._inference.model_statistics(name, version)
        return JSONResponse({"model_stats": statistics})

    async def index(self, http_request: HTTPRequest) -> Response:
        fields = await self._fields(http_request)
        bundles = await self._inference.index(ready=fields.get("ready") is True)
        return JSONResponse(bundles)

    async def load(self, http_request: HTTPRequest) -> Response:
        fields = await self._fields(http_request)
        name, _ = _model(http_request)
        await self._inference.load(name, fields.get("parameters"))
        return Response()

    async def unload(self, http_request: HTTPRequest) -> Response:
        # Triton's clients send parameters, which do not matter here.
        await self._json(http_request)
        name, _ = _model(http_request)
        await self._inference.unload(name)
        return Response()

    async def metrics(self, http_request: HTTPRequest) -> Response:
        text = await asyncio.to_thread(self._metrics.text)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    async def infer(self, http_request: HTTPRequest) -> Response:
        name, version = _model(http_request)
        self._inference.check_model(name, version)
        header_length = http_request.headers.get(HEADER_LENGTH)
        if header_length is not None:
            header_length = header_length.strip()  # a parser may leave spaces at the end of a value
        only_json = header_length is None
        body = await self._body(http_request, only_json=only_json)

        # In one step: many bodies that wait to be decoded would take much memory if they were decompressed before.
        def decode() -> InferRequest:
            return read(body.decompressed(), header_length, self._settings)

        submitted = await self._inference.submit(name, version, body.most_bytes, decode)
        response = await self._inference.answer(submitted.future)
        size = sum(array.nbytes for array in response.outputs.values())
        accepted = http_request.headers.get("Accept-Encoding", "")
        return await in_thread_if_large(
            size, self._encode, submitted.infer_request, name, response, accepted
        )

    def _encode(
        self, infer_request: InferRequest, model_name: str, response: ModelResponse, accepted: str
    ) -> Response:
        """The answer of a model as HTTP; `accepted`: the client's Accept-Encoding."""
        body, headers = write(infer_request, model_name, response, self._settings)
        encoding = None
        if len(body) >= MIN_COMPRESSED_BYTES:
            encoding = choose_encoding(accepted, binary=HEADER_LENGTH in headers)
        if encoding:
            body = compress(body, encoding)
            headers["Content-Encoding"] = encoding
        return Response(body, headers=headers)

    async def _fields(self, http_request: HTTPRequest) -> dict[str, Any]:
        """The JSON object of a body; an empty body counts as an empty object."""
        text = await self._json(http_request)
        return parse_json(text, self._settings.max_json_bytes) if text.strip() else {}

    async def _json(self, http_request: HTTPRequest) -> bytes:
        body = await self._body(http_request, only_json=True)
        return await in_thread_if_large(body.most_bytes, body.decompressed)

    async def _body(self, http_request: HTTPRequest, *, only_json: bool) -> Body:
        """The body of a request; `only_json`: nothing but JSON is expected in it."""
        max_bytes = self._settings.max_json_bytes if only_json else self._settings.max_bytes
        encoding = http_request.headers.get("Content-Encoding", "").strip().lower()
        with _said_of_json(max_bytes) if only_json else nullcontext():
            async with deadline(self._settings.body_seconds, "the body took"):
                data = await _receive_body(http_request, max_bytes)
        return Body(data, encoding, max_bytes, only_json)


@contextmanager
def _said_of_json(max_bytes: int) -> Iterator[None]:
    """A body that is too large should have been less JSON."""
    try:
        yield
    except TooLargeError:
        raise TooLargeError(too_much_json("the body has more", max_bytes)) from None


def _model(http_request: HTTPRequest) -> tuple[str, str]:
    """Name and version of the model in a path; "" for what the path does not say."""
    path_params = http_request.path_params
    return path_params.get("model", ""), path_params.get("version", "")


async def _receive_body(http_request: HTTPRequest, max_bytes: int) -> bytes:
    """
    Raises:
        TooLargeError: the body has more than `max_bytes`; the rest of it is not read.
    """
    pieces = []
    size = 0
    async for piece in http_request.stream():
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise TooLargeError(f"the body has more than {max_bytes} bytes, which is the limit.")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _not_implemented(http_request: HTTPRequest) -> Response:
    path = http_request.url.path
    raise UnsupportedError(
        f"{path} is not supported: this server has no shared memory, tracing or log settings."
    )


async def _openapi(http_request: HTTPRequest) -> Response:
    document = resources.files(__package__).joinpath("openapi.json").read_bytes()
    return Response(document, media_type="application/json")


async def _http_error(http_request: HTTPRequest, error: Exception) -> Response:
    """Starlette's own errors, as JSON."""
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = f"{http_request.url.path} is not found."
    elif error.status_code == 405:
        message = f"{http_request.url.path} does not accept {http_request.method}."
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _client_disconnected(http_request: HTTPRequest, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _error(http_request: HTTPRequest, error: Exception) -> Response:
    error_status = status(error)
    headers = {}
    # The rest of a body that was not read to its end would be taken for the connection's next request.
    if error_status.http in (413, 504):
        headers["Connection"] = "close"
    if error_status.http == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    return JSONResponse({"error": error_status.message}, error_status.http, headers)
