"""`Cores`: a graph on a CPU, and how its runs use the cores: all of them on each node, or each on rows of its own.

The product of one step is small. Cores that work on it together wait for each other at every step, and the idle threads
of a server sleep meanwhile; with rows of its own a core waits once, at the end. For one row, or a wide layer, it can be
the other way round, so that it is measured.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count

import numpy as np

from deploy_rnn.runtime import TensorSpec, usable_cores
from deploy_rnn.timing import quickest

from .session import Runner

Arrays = Mapping[str, np.ndarray]

ALL_CORES = 0
"""Number of parts of a run that all cores share."""


class Cores:
    """A graph in two sessions, of all cores and of one, until `tune` has found which of them is of use.

    Args:
        open_with: opens the graph for so many cores.
        cores: that a run may use; 2 or more.
        clock: what `tune` measures by, in seconds.
    """

    prefers_few_row_counts = False

    def __init__(
        self, open_with: Callable[[int], Runner], cores: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._open, self._cores, self._clock = open_with, cores, clock
        self._together: Runner = open_with(cores)
        self._alone: Runner | None = None
        self._axes: Mapping[str, int] = {}
        self._parts = {1: ALL_CORES}
        self._pool = ThreadPoolExecutor(cores, "deploy-rnn rows", initializer=_placed(cores))

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        return self._run(feeds, outputs, self.parts(self._rows(feeds)))

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        return self._together.specs()

    def parts(self, rows: int) -> int:
        """Into how many parts a run of so many rows is cut, each on one core; `ALL_CORES` if all cores share it."""
        return self._parts[max(tried for tried in self._parts if tried <= rows)]

    def tune(
        self, example: Callable[[int], Arrays], outputs: Sequence[str], axes: Mapping[str, int], tried: Sequence[int]
    ) -> dict[int, float]:
        """Measure what is the fastest for how many rows, and close the session that never is.

        Args:
            example: inputs of so many rows.
            outputs: the names of all.
            axes: of the rows, in every input and output; empty if rows may not be cut apart.
            tried: numbers of rows, from 1 upwards.

        Returns:
            Rows -> seconds of one run in the way that was the fastest.
        """
        fastest: dict[int, float] = {}
        self._alone, self._axes = self._alone or self._open(1), axes
        for rows in tried:
            feeds, most = example(rows), min(rows, self._cores) if axes else 1
            choices = [ALL_CORES, *(1 << power for power in range(most.bit_length())), most]
            taken = {parts: self._seconds(feeds, outputs, parts) for parts in dict.fromkeys(choices)}
            self._parts[rows], fastest[rows] = min(taken.items(), key=lambda each: each[1])
        if ALL_CORES not in self._parts.values():
            self._together = self._alone
        if set(self._parts.values()) == {ALL_CORES}:
            self._alone = None
        return fastest

    def _rows(self, feeds: Arrays) -> int:
        return next((feeds[name].shape[axis] for name, axis in self._axes.items() if name in feeds), 1)

    def _seconds(self, feeds: Arrays, outputs: Sequence[str], parts: int) -> float:
        return quickest(lambda: self._run(feeds, outputs, parts), self._clock)

    def _run(self, feeds: Arrays, outputs: Sequence[str], parts: int) -> list[np.ndarray]:
        alone = self._alone
        if parts == ALL_CORES or alone is None:
            return self._together.run(feeds, outputs)
        if parts == 1:
            return alone.run(feeds, outputs)
        cut = {name: np.array_split(array, parts, self._axes[name]) for name, array in feeds.items()}
        rows = ({name: arrays[part] for name, arrays in cut.items()} for part in range(parts))
        futures = [self._pool.submit(alone.run, each, outputs) for each in rows]
        wait(futures)
        results = [future.result() for future in futures]
        return [
            _whole(arrays, self._axes[name]) for name, arrays in zip(outputs, zip(*results, strict=True), strict=True)
        ]


def _placed(cores: int) -> Callable[[], None]:
    """Each thread that calls it takes a core of its own, if the threads are to use all of them.

    Linux would wake the threads of an idle pool on one core, and part them some ten milliseconds later.
    """
    if cores != usable_cores() or not hasattr(os, "sched_setaffinity"):
        return lambda: None
    free = count()
    places = sorted(os.sched_getaffinity(0))
    return lambda: os.sched_setaffinity(0, {places[next(free) % cores]})


def _whole(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """The parts joined; in memory the rows come first, as a client gets them."""
    others = np.moveaxis(parts[0], axis, 0).shape[1:]
    rows = sum(part.shape[axis] for part in parts)
    whole = np.moveaxis(np.empty((rows, *others), parts[0].dtype), 0, axis)
    return np.concatenate(parts, axis, out=whole)
