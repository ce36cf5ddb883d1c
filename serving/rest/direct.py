"""Requests that are answered directly: no task runs for them, and nothing stands between the connection and the model.

ASGI, where each application awaits the next, takes a task and a dozen coroutines for a request. One whose body has
arrived with its head has nothing to wait for but the model; so an application may say who begins to answer it in a
plain call, and replies in another. Whatever is unusual about a request it leaves to its way as an ASGI application,
which has the last word.

All that the head decides is decided once: a client sends the same head again and again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from starlette.types import Receive, Scope, Send

Headers = Sequence[tuple[bytes, bytes]]

MAX_KNOWN_HEADS = 1024
MAX_KNOWN_BYTES = 1024
"""Of such a head; longer ones differ each time, since they have cookies or traces."""

HEAD_END = b"\r\n\r\n"


class Reply(Protocol):
    """Sends the whole answer; called once, on the event loop, perhaps before `Begin` returns."""

    def __call__(self, status: int, headers: Headers, body: bytes) -> None: ...


class Begun(Protocol):
    """A request that is being answered."""

    def leave(self) -> None:
        """Nobody waits for the answer any more: there will be no reply."""
        ...

    def cancel(self, msg: Any = None) -> Any:
        """Reply soon that there is no answer. Named as that of a task, which stands for it elsewhere."""
        ...


Begin = Callable[[bytes, Reply], Begun | None]
"""Begins to answer a request whose body is there; None if it has to go to the ASGI application."""


@runtime_checkable
class DirectApp(Protocol):
    """An ASGI application that also answers directly."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def direct(self, scope: Scope) -> Begin | None:
        """Say who answers the requests that have this head; None if they have to go to the ASGI application.

        The answer depends on the head alone: it counts for all further requests that have the same.
        """
        ...


class KnownHead(NamedTuple):
    """What was read from the bytes of a head.

    Attributes:
        scope: of ASGI, without the addresses of a connection.
        begin: who answers these requests.
        body_bytes: their Content-Length.
    """

    scope: Mapping[str, Any]
    begin: Begin
    body_bytes: int


class KnownHeads:
    """Heads that were read before, byte by byte the same: they need not be read again."""

    def __init__(self) -> None:
        # The one that was remembered first comes first.
        self._heads: dict[bytes, KnownHead] = {}

    def find(self, data: bytes) -> tuple[KnownHead, bytes] | None:
        """The head and the body of a request, if `data` is the whole of one, and its head is known."""
        body_start = data.find(HEAD_END) + len(HEAD_END)
        head = self._heads.get(data[:body_start])
        if head is None or head.body_bytes != len(data) - body_start:
            return None
        return head, data[body_start:]

    def remember(self, data: bytes, head: KnownHead) -> None:
        """
        Args:
            data: the whole of a request, which was read as one.
            head: what was read from its head.
        """
        body_start = data.find(HEAD_END) + len(HEAD_END)
        if body_start > MAX_KNOWN_BYTES or head.body_bytes != len(data) - body_start:
            return
        if len(self._heads) >= MAX_KNOWN_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[data[:body_start]] = head
