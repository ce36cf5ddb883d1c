"""gRPC through Ray: its proxy hands over messages and takes answers; our service is shown a call of gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from ..grpc.messages import SERVICE
from ..grpc.service import METHODS, STREAMING_METHODS
from .routed_model import routed_by

SESSION_KEY = "session_id"
"""The metadata entry by which Ray's gRPC proxy routes a call."""


Handle = Callable[[object, Any], Any]
"""A handler of `Service.handlers`."""


def is_loopback(host: str) -> bool:
    """Whether an address, such as `127.0.0.1` or `::ffff:127.0.0.1`, is of the same machine."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Answer:
    """A message that is bytes already; Ray asks every answer to serialize itself."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:
        return self._data


class Aborted(Exception):
    """A call has ended with a status, which its context has."""


class Call:
    """What the service needs of a `grpc.aio.ServicerContext`.

    Args:
        context: Ray's, which travels back to its proxy with the status.
        messages: what the client sends, as bytes.
        local_only: whether a client of another machine is refused.
    """

    def __init__(self, context: Any, messages: AsyncIterator[bytes], local_only: bool) -> None:
        self._context = context
        self._local_only = local_only
        self._messages = messages
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()

    def invocation_metadata(self) -> list[tuple[str, str]]:
        metadata: list[tuple[str, str]] = self._context.invocation_metadata()
        return metadata

    def peer(self) -> str:
        return str(self._context.peer())

    def time_remaining(self) -> None:
        """Unknown: Ray's proxy keeps the client's deadline, and cancels the call then."""

    def code(self) -> Any:
        return self._context.code()

    async def read(self) -> Any:
        """The next message; `grpc.aio.EOF` after the last."""
        return await anext(self._messages, grpc.aio.EOF)

    async def write(self, data: bytes) -> None:
        self._answers.put_nowait(data)

    async def abort(self, code: Any, details: str) -> NoReturn:
        self._context.set_code(code)
        self._context.set_details(details)
        raise Aborted

    async def run(self, handle: Handle) -> bytes:
        """Handle the call, and return its last message; an empty one if it has ended with an error."""
        metadata = dict(self.invocation_metadata())
        routed_by.set(metadata.get(SESSION_KEY, ""))
        try:
            await self._check_peer()
            answer: bytes = await handle(None, self)
        except Aborted:
            return b""
        finally:
            self._answers.put_nowait(None)
        return answer

    async def _check_peer(self) -> None:
        """Ray's proxy listens on all addresses, whatever the host of HTTP is."""
        host = unquote(self.peer().partition(":")[2]).rpartition(":")[0].strip("[]")
        if self._local_only and not is_loopback(host):
            message = "this server answers its own machine only; start it with `--host 0.0.0.0`, or with a token."
            await self.abort(grpc.StatusCode.PERMISSION_DENIED, message)

    async def answers(self) -> AsyncIterator[bytes]:
        """Those that are written, until `run` has ended."""
        while (data := await self._answers.get()) is not None:
            yield data


async def only(message: bytes) -> AsyncIterator[bytes]:
    yield message


async def answer_one(handle: Handle, message: bytes, context: Any, *, local_only: bool) -> Answer:
    """Answer a call of one message."""
    call = Call(context, only(message), local_only)
    # In a task of its own, whose end gives back the call's place.
    return Answer(await asyncio.create_task(call.run(handle)))


async def answer_many(
    handle: Handle, messages: AsyncIterator[bytes], context: Any, *, local_only: bool
) -> AsyncIterator[Answer]:
    """Answer a streaming call."""
    call = Call(context, messages, local_only)
    task = asyncio.create_task(call.run(handle))
    try:
        async for data in call.answers():
            yield Answer(data)
        await task
    finally:
        task.cancel()


def add_to_server(servicer: object, server: Any) -> None:
    """Tell Ray's gRPC proxy the methods of the protocol: `grpc_servicer_functions` of its options names this function.

    Messages stay bytes. What the methods do here does not matter: the proxy puts its own in their place.
    """
    handlers: dict[str, Any] = {}
    for name in METHODS:
        make = grpc.unary_unary_rpc_method_handler
        if name in STREAMING_METHODS:
            make = grpc.stream_stream_rpc_method_handler
        handlers[name] = make(servicer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
