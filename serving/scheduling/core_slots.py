"""`CoreSlots`: the cores of this process, which the runs of all its models share."""

from collections import deque
from threading import Lock
from typing import Self

from deploy_rnn.runtime import CPU

from ..engine.providers import side_by_side


class Slot:
    """What a run holds: one core, or all of them. It waits for a core when it is entered, and gives back what it holds
    when it is left.

    Attributes:
        cores: how many it holds.
        awaited: a lock that is released when it gets its core; None if it has not had to wait.
    """

    __slots__ = ("_slots", "awaited", "cores")

    def __init__(self, slots: "CoreSlots") -> None:
        self.cores = 1
        self.awaited: Lock | None = None
        self._slots = slots

    def __enter__(self) -> Self:
        self._slots.take(self)
        return self

    def __exit__(self, *raised: object) -> None:
        self._slots.give_back(self)


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

    def taken(self) -> Slot:
        """A slot for a run, to be entered."""
        return Slot(self)

    def take(self, slot: Slot) -> None:
        """Wait for a core."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            slot.awaited = Lock()
            slot.awaited.acquire()
            self._waiting.append(slot)
        slot.awaited.acquire()

    def give_back(self, slot: Slot) -> None:
        """Hand the cores of a slot to those that wait: each awakes only when it has one."""
        with self._lock:
            self._free += slot.cores
            while self._free and self._waiting:
                self._free -= 1
                awaited = self._waiting.popleft().awaited
                assert awaited is not None, "it waits"
                awaited.release()

    def widen(self, slot: Slot) -> bool:
        """Take all the other cores too. False, and nothing is taken, if one of them is in use or waited for."""
        with self._lock:
            if self._free < self.count - 1 or self._waiting:
                return False
            self._free = 0
            slot.cores = self.count
            return True
