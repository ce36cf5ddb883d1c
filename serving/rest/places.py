"""`Places`: how many connections a server has, and whose place a new one gets."""

import time
from collections.abc import Set
from typing import Any

from ..protocol.access_log import AccessLog
from ..settings import Settings
from .direct import KnownHeads
from .exchange import Channel
from .unread import UnreadTotal

HEALTH_PLACES = 16
"""Connections beyond `max_connections`; on these, only health is answered."""

MIN_IDLE_SECONDS = 1.0
"""An idle connection is closed for a new one only after this time: its next request may be on the way."""


class Places:
    """The connections of a server, and which of them may ask for what.

    Args:
        health_paths: what is answered when all other places are taken.
        access_log: gets each request; None for no log.

    Attributes:
        stopping: whether the server stops: every answer is then the last of its connection.
        known_heads: of requests that are answered directly.
        unread: answers that wait for their clients.
    """

    def __init__(
        self, settings: Settings, health_paths: Set[str], access_log: AccessLog | None = None
    ) -> None:
        self.settings = settings
        self.health_paths = health_paths
        self.access_log = access_log
        self.stopping = False
        self.known_heads = KnownHeads()
        self.unread = UnreadTotal(settings.max_unread_bytes)
        # Connection -> since when; the one that has been idle longest comes first.
        self._idle: dict[Channel, float] = {}

    def enter(self, connection: Channel, connections: set[Any]) -> bool:
        """Give a new connection a place, if need be that of an idle one. False if only health may be asked for.

        Where there is no place at all, the connection is closed.
        """
        most = self.settings.max_connections
        if len(connections) <= most or self._evict(MIN_IDLE_SECONDS):
            return True
        if len(connections) > most + HEALTH_PLACES and not self._evict(0):
            connection.abort()
        return False

    def set_idle(self, connection: Channel, *, idle: bool) -> None:
        if not idle:
            self._idle.pop(connection, None)
        elif connection not in self._idle:
            self._idle[connection] = time.monotonic()

    def _evict(self, idle_seconds: float) -> bool:
        """Close the connection that has been idle longest, if that is at least `idle_seconds`."""
        for connection, since in self._idle.items():
            if time.monotonic() - since < idle_seconds:
                return False
            del self._idle[connection]
            connection.abort()
            return True
        return False
