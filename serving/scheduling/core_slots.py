"""`CoreSlots`: the cores of this process, which the runs of all its models share."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Self

from deploy_rnn.runtime import CPU

from ..engine.providers import side_by_side


@dataclass(eq=False)
class Slot:
    """What a run holds: one core, or all of them.

    Attributes:
        awaited: a lock that is released when it gets its core; a thread waits for it.
    """

    cores: int = 1
    awaited: Lock = field(default_factory=Lock)


class CoreSlots:
    """As many runs at a time as there are cores, each on one. They get them in the order in which they ask, so that no
    model keeps another from running. A run that is the only one may take all cores.

    Thread-safe.

    Args:
        count: how many cores there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._waiting: deque[Slot] = deque()
        self._lock = Lock()

    @classmethod
    def of(cls, provider: str = CPU, threads: int | None = None) -> Self:
        """As many as a model may use with these arguments of `Engine`."""
        return cls(side_by_side(provider, threads))

    @contextmanager
    def taken(self) -> Iterator[Slot]:
        """Wait for a core, and give back what the slot holds in the end."""
        slot = Slot()
        with self._lock:
            has_to_wait = not self._free
            if has_to_wait:
                slot.awaited.acquire()
                self._waiting.append(slot)
            else:
                self._free -= 1
        if has_to_wait:
            slot.awaited.acquire()
        try:
            yield slot
        finally:
            self._give_back(slot)

    def _give_back(self, slot: Slot) -> None:
        """Hand the cores of a slot to those that wait: each awakes only when it has one."""
        with self._lock:
            self._free += slot.cores
            while self._free and self._waiting:
                self._free -= 1
                self._waiting.popleft().awaited.release()

    def widen(self, slot: Slot) -> bool:
        """Take all the other cores too. False, and nothing is taken, if one of them is in use or waited for."""
        with self._lock:
            if self._free < self.count - 1 or self._waiting:
                return False
            self._free = 0
            slot.cores = self.count
            return True
