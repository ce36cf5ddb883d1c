"""`StreamOwners`: which replica has which stream. One for all replicas of an application, in an actor of Ray.

Ray's router says to which replica a chunk goes. It chooses another one when replicas come or go, and back again, and
routers of different machines learn of that at different times. A replica to which a stream comes back still has the
states that were left there. So a stream belongs to the replica that began it last, and every chunk is confirmed here
before it is answered.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

MAX_STREAMS = 1_000_000
"""Those that were used longest ago are forgotten; their next chunk is refused."""

BEGIN = "begin"
CONFIRM = "confirm"
END = "end"


class Claim(NamedTuple):
    """What a replica says of a stream.

    Attributes:
        verb: BEGIN: it is mine from now on; CONFIRM: is it mine still? END: it was mine until now.
        stream: its model and its id.
        token: of this replica and this beginning of the stream; no other has the same.
    """

    verb: str
    stream: Hashable
    token: str


class StreamOwners:
    """Stream -> the token of its latest beginning. If the actor is lost, a new one knows none, and every stream has to
    begin anew.
    """

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self._max_streams = max_streams
        self._tokens: OrderedDict[Hashable, str] = OrderedDict()

    def claim(self, claims: Sequence[Claim]) -> list[bool]:
        """Answer several claims, in order: whether each replica has the stream."""
        return [self._claim(*claim) for claim in claims]

    def _claim(self, verb: str, stream: Hashable, token: str) -> bool:
        if verb == BEGIN:
            self._tokens[stream] = token
        owned = self._tokens.get(stream) == token
        if owned and verb == END:
            del self._tokens[stream]
        elif owned:
            self._tokens.move_to_end(stream)
        if len(self._tokens) > self._max_streams:
            self._tokens.popitem(last=False)
        return owned
