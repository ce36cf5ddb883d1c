"""Requests that are answered directly: no task runs for them, and nothing stands between the connection and the model.

ASGI, where each application awaits the next, takes a task and a dozen coroutines for a request. One whose body has
arrived with its head has nothing to wait for but the model; so an application may take it in a plain call, `begin`, and
reply in another. Whatever is unusual about a request it leaves to its way as an ASGI application, which has the last
word.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from starlette.types import Receive, Scope, Send

Headers = Sequence[tuple[bytes, bytes]]


class Reply(Protocol):
    """Sends the whole answer; called once, on the event loop, perhaps before `begin` returns."""

    def __call__(self, status: int, headers: Headers, body: bytes) -> None: ...


class Begun(Protocol):
    """A request that is being answered."""

    def leave(self) -> None:
        """Nobody waits for the answer any more: there will be no reply."""
        ...

    def cancel(self, msg: Any = None) -> Any:
        """Reply soon that there is no answer. Named as that of a task, which stands for it elsewhere."""
        ...


@runtime_checkable
class DirectApp(Protocol):
    """An ASGI application that also answers directly."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def begin(self, scope: Scope, body: bytes, reply: Reply) -> Begun | None:
        """Begin to answer a request, whose body is there; None if it has to be called as an ASGI application."""
        ...
