"""The protocol over HTTP, as an ASGI application."""

import asyncio
from collections.abc import Set
from importlib import resources
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from deploy_rnn.errors import DeployError, InputError, UnauthorizedError, UnsupportedError

from ..metrics import CONTENT_TYPE, Metrics
from ..protocol import oip
from ..protocol.inference import Inference, in_thread_if_large
from ..protocol.tensors import shown
from ..repository import Repository
from ..scheduling.request import Request
from ..scheduling.served_model import ServedModel
from ..settings import Settings
from . import page, predict
from .binary import parse_json
from .bodies import Body, receive_body
from .direct import Begin, DirectApp
from .errors import error_response
from .infer import Answer, InferApp, Shortcut, compress_if_accepted
from .other_sites import OwnSite, parse_hosts
from .tracing import TracedApp

if TYPE_CHECKING:
    from ..protocol.tracing import Tracing

UNSUPPORTED = ("systemsharedmemory", "cudasharedmemory", "trace", "logging")
"""Extensions of Triton below /v2 that are answered with 501."""

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")
"""Paths for orchestrators, which have no token."""

MAX_SHOWN_PATH = 200
"""Characters of a path in a message."""

POLICY_VIOLATION = 1008
"""The close code of a WebSocket that is refused."""


def make_app(
    repository: Repository, settings: Settings | None = None, tracing: "Tracing | None" = None
) -> DirectApp:
    """The application of a server's models.

    Any ASGI server runs it. It does nothing in its lifespan: the caller loads and closes `repository`.

    Args:
        tracing: traces the requests; None for no traces.

    Raises:
        ValueError: a folder in `settings.pages` is not a page, or one of `settings.allowed_hosts` not a host.
    """
    settings = settings or Settings()
    make_inference = tracing.inference if tracing else Inference
    inference = make_inference(repository, settings)
    infer = InferApp(inference)
    endpoints = Endpoints(inference, Metrics(repository), infer)
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
    own_site = OwnSite(Shortcut(infer, app), page_paths, parse_hosts(settings.allowed_hosts))
    guard = Guard(own_site, inference, {*OPEN_PATHS, *page_paths})
    return TracedApp(guard, tracing) if tracing else guard


class Guard:
    """Lets through only what the application is for: HTTP requests that have the token, or need none.

    A pure ASGI middleware, which costs next to nothing.
    """

    def __init__(self, app: DirectApp, inference: Inference, open_paths: Set[str]) -> None:
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

    def direct(self, scope: Scope) -> Begin | None:
        return self._app.direct(scope) if self._refusal(scope) is None else None

    async def _handle_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._refusal(scope) or self._app
        await app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that is not let through."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
            message = f"the request has {len(hosts)} headers `Host`; must be one."
            return JSONResponse({"error": message}, 400)
        if scope["path"] not in self._open_paths:
            headers = dict(scope["headers"])
            try:
                self._inference.authorize(headers.get(b"authorization"))
            except UnauthorizedError as error:
                return JSONResponse({"error": str(error)}, 401, {"WWW-Authenticate": "Bearer"})
        return None


class Endpoints:
    """The paths of the protocol; docs/serving.md lists them."""

    def __init__(self, inference: Inference, metrics: Metrics, infer: InferApp) -> None:
        self._inference = inference
        self._metrics = metrics
        self._infer = infer
        self._settings = inference.settings

    def routes(self) -> list[Route]:
        model_path = "/v2/models/{model}"
        routes = [
            Route("/openapi.json", _openapi),
            Route("/metrics", self.metrics),
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v1/models", self.model_names),
            Route("/v1/models/{model}:predict", self.predict, methods=["POST"]),
            Route("/v1/models/{model}", self.model_ready),
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
                Route(f"{prefix}/infer", self._infer, methods=["POST"]),
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
        ready = fields.get("ready", False)
        if not isinstance(ready, bool):
            raise InputError(f"`ready` must be true or false, got {shown(ready)}.")
        bundles = await self._inference.index(ready=ready)
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

    async def model_names(self, http_request: HTTPRequest) -> Response:
        return JSONResponse({"models": self._inference.model_names()})

    async def predict(self, http_request: HTTPRequest) -> Response:
        name, version = _model(http_request)
        model = self._inference.check_model(name, version)
        received = await self._body(http_request)

        def decode(model: ServedModel) -> list[Request]:
            return predict.read(received.decompressed(), model, self._settings)

        responses = await self._inference.predict(name, received.most_bytes, decode)
        size = sum(array.nbytes for response in responses for array in response.outputs.values())

        def encode() -> Answer:
            body, headers = predict.write(responses, model, self._settings)
            accepted = http_request.headers.get("Accept-Encoding", "")
            return compress_if_accepted(body, headers, accepted)

        body, headers = await in_thread_if_large(size, encode)
        return Response(body, headers=headers)

    async def metrics(self, http_request: HTTPRequest) -> Response:
        text = await asyncio.to_thread(self._metrics.text)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    async def _fields(self, http_request: HTTPRequest) -> dict[str, Any]:
        """The JSON object of a body; an empty body counts as an empty object."""
        text = await self._json(http_request)
        return parse_json(text, self._settings.max_json_bytes) if text.strip() else {}

    async def _json(self, http_request: HTTPRequest) -> bytes:
        body = await self._body(http_request)
        return await in_thread_if_large(body.most_bytes, body.decompressed)

    async def _body(self, http_request: HTTPRequest) -> Body:
        """The body of a request of JSON alone."""
        encoding = http_request.headers.get("Content-Encoding", "")
        scope, receive = http_request.scope, http_request.receive
        return await receive_body(scope, receive, encoding, self._settings, only_json=True)


def _model(http_request: HTTPRequest) -> tuple[str, str]:
    """Name and version of the model in a path; "" for what the path does not say."""
    path_params = http_request.path_params
    return path_params.get("model", ""), path_params.get("version", "")


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
    path = http_request.url.path[:MAX_SHOWN_PATH]
    if error.status_code == 404:
        message = f"{path} is not found."
    elif error.status_code == 405:
        message = f"{path} does not accept {http_request.method}."
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _client_disconnected(http_request: HTTPRequest, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _error(http_request: HTTPRequest, error: Exception) -> Response:
    return error_response(error)
