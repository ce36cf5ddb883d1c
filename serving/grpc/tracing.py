"""Spans for the calls of gRPC that ask a model for something."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from .messages import SERVICE
from .naming import address, code_name

if TYPE_CHECKING:
    from ..protocol.tracing import Tracing

METHODS = frozenset(
    ("ModelInfer", "ModelStreamInfer", "RepositoryModelLoad", "RepositoryModelUnload")
)
"""Others, such as health checks, are asked for often and tell little."""

FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
"""The codes that are an error of the server, by OpenTelemetry's conventions for gRPC."""

Handler = Callable[[Any, Any], Awaitable[bytes]]


def traced(method: str, handle: Handler, tracing: "Tracing | None") -> Handler:
    """The same call, whose span ends when it does."""
    if tracing is None or method not in METHODS:
        return handle
    name = f"{SERVICE}/{method}"
    constants = {"rpc.system.name": "grpc", "rpc.method": name}

    async def handle_traced(messages: object, context: Any) -> bytes:
        headers: dict[str, list[str]] = {}
        for key, value in context.invocation_metadata() or ():
            if isinstance(value, str):  # others are bytes, of no meaning here
                headers.setdefault(key, []).append(value)
        attributes = constants | {"client.address": address(context.peer())}
        with tracing.request(name, headers, attributes) as span:
            code = ""
            try:
                answer = await handle(messages, context)
                code = "OK"
                return answer
            finally:
                code = code or code_name(context.code())
                span.end_with({"rpc.response.status_code": code}, code if code in FAULTS else "")

    return handle_traced
