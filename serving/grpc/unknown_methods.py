"""Calls of methods that a server does not have, refused without a look at their names.

grpcio (1.85) decodes the name of such a method in the loop that takes all calls. One that is not UTF-8 ended that loop,
and with it the whole server.
"""

import asyncio
import contextlib
from typing import Any

import grpc
from grpc._cython import cygrpc

MESSAGE = "this server has no such method; its service is inference.GRPCInferenceService."


def make_server(options: list[tuple[str, int]]) -> grpc.aio.Server:
    """A `grpc.aio.server` whose methods are all to be registered: `add_registered_method_handlers`."""
    own_class = cygrpc.AioServer
    # In a version of grpcio without this, each call is decoded for itself, and nothing else ends with it.
    if not hasattr(own_class, "_make_request_call_future"):
        return grpc.aio.server(options=options)

    class AioServer(own_class):  # type: ignore[misc, valid-type]
        """As grpcio's, but for calls of methods that are not registered."""

        def _make_request_call_future(self, method: bytes | None) -> Any:
            if method is not None:
                return super()._make_request_call_future(method)
            return asyncio.get_running_loop().create_task(_refuse_calls(self))

    try:
        cygrpc.AioServer = AioServer
        return grpc.aio.server(options=options)
    finally:
        cygrpc.AioServer = own_class


async def _refuse_calls(server: Any) -> None:
    """Refuse every call of an unknown method, until the server stops and this raises an error of its own."""
    tasks: set[asyncio.Task[None]] = set()
    while True:
        call = await server._request_call()
        task = asyncio.create_task(_refuse(call))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _refuse(call: Any) -> None:
    context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
    # It raises when it is done, and when the client has left.
    with contextlib.suppress(grpc.aio.BaseError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, MESSAGE)
