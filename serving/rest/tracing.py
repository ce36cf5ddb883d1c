"""`TracedApp`: a span for each request of HTTP that asks a model for something."""

import re
from typing import TYPE_CHECKING, Any

from starlette.types import Message, Receive, Scope, Send

from .direct import Begin, DirectApp

if TYPE_CHECKING:
    from ..protocol.tracing import Tracing

MODEL = "/v2/models/{model}"

# What else there is, such as health checks and metrics, is asked for often and tells little.
ROUTES = (
    (re.compile(r"/v2/models/[^/]+/infer"), f"{MODEL}/infer"),
    (re.compile(r"/v2/models/[^/]+/versions/[^/]+/infer"), f"{MODEL}/versions/{{version}}/infer"),
    (re.compile(r"/v1/models/[^/]+:predict"), "/v1/models/{model}:predict"),
    (re.compile(r"/v2/repository/models/[^/]+/load"), "/v2/repository/models/{model}/load"),
    (re.compile(r"/v2/repository/models/[^/]+/unload"), "/v2/repository/models/{model}/unload"),
)


class TracedApp:
    """An ASGI application whose requests have spans by OpenTelemetry's conventions for HTTP."""

    def __init__(self, app: DirectApp, tracing: "Tracing") -> None:
        self._app = app
        self._tracing = tracing

    def direct(self, scope: Scope) -> Begin | None:
        return None  # the span of a request lasts as long as its call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = _route(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = _headers(scope)
        name = f"{scope['method']} {route}"
        with self._tracing.request(name, headers, _attributes(scope, route, headers)) as span:
            try:
                await self._app(scope, receive, send_noting)
            finally:
                if status:
                    failure = str(status) if status >= 500 else ""
                    span.end_with({"http.response.status_code": status}, failure)
                else:
                    span.end_with({}, "no_answer")  # the client has left


def _route(scope: Scope) -> str | None:
    """The pattern of the path of a request that is traced; None for any other."""
    if scope["type"] == "http" and scope["method"] == "POST":
        for pattern, route in ROUTES:
            if pattern.fullmatch(scope["path"]):
                return route
    return None


def _headers(scope: Scope) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return headers


def _attributes(scope: Scope, route: str, headers: dict[str, list[str]]) -> dict[str, str | int]:
    """The query of a request is left out: it may hold secrets."""
    attributes: dict[str, Any] = {
        "http.request.method": scope["method"],
        "http.route": route,
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if scope.get("server"):
        attributes["server.address"], attributes["server.port"] = scope["server"]
    if scope.get("client"):
        attributes["client.address"], attributes["client.port"] = scope["client"]
    if "user-agent" in headers:
        attributes["user_agent.original"] = headers["user-agent"][0]
    # A server on a Unix socket has no port.
    return {name: value for name, value in attributes.items() if value is not None}
