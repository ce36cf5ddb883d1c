"""`Cores`: a graph on a CPU, whose cores share every node, divide the rows of a run, or make a run each.

The product of one step is small. Cores that share it wait for each other at every step, and the idle threads of a
server sleep meanwhile; a core with its own rows waits once, at the end. For one row, or a wide layer, sharing can be
faster, so both ways are measured.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count

import numpy as np

from deploy_rnn.runtime import Specs, usable_cores
from deploy_rnn.timing import quickest

from .arrays import Arrays
from .session import Runner

ALL_CORES = 0
"""Number of parts of a run whose nodes are shared by all cores."""

WORTH_ALL_CORES = 1.5
"""How many times as fast a run must be with all cores to keep them from others: it is measured while nothing else runs,
but beside it a server reads requests, and the next one to come has to wait for it."""

CHECKS = 3
"""How many times it is measured again whether a run is worth all cores: another process may have held up the run on one
core. Taken for it wrongly, a run of 2 ms took 30 where other processes were busy."""


class Cores(Runner):
    """A graph in two sessions, for all cores and for one. `tune` opens the one for one core, which runs side by side
    use, and closes the other one if it is never the faster.

    Args:
        open_for: opens the graph for a number of cores.
        cores: how many a run may use; 2 or more.
        clock: what `tune` measures by, in seconds.
    """

    prefers_few_row_counts = False

    def __init__(
        self,
        open_for: Callable[[int], Runner],
        cores: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._open_for: Callable[[int], Runner] | None = open_for
        self._cores = cores
        self._clock = clock
        self._all_cores: Runner = open_for(cores)
        self._one_core: Runner | None = None  # opened by `tune`
        self._batch_axes: Mapping[str, int] = {}
        self._parts = {1: ALL_CORES}
        # Rows -> the time on one core as a multiple of that of the fastest way.
        self._gains = {1: 1.0}
        self._pool = ThreadPoolExecutor(
            cores,
            thread_name_prefix="deploy-rnn rows",
            initializer=_thread_pinner(cores),
        )

    def run(
        self, feeds: Arrays, outputs: Sequence[str], *, one_core: bool = False
    ) -> list[np.ndarray]:
        parts = 1 if one_core else self.parts(self._rows(feeds))
        return self._run(feeds, outputs, parts)

    def gains_from_cores(self, rows: int) -> bool:
        return self._gains[self._tuned_rows(rows)] >= WORTH_ALL_CORES

    def specs(self) -> tuple[Specs, Specs]:
        return self._all_cores.specs()

    def metadata(self) -> Mapping[str, str]:
        return self._all_cores.metadata()

    def parts(self, rows: int) -> int:
        """Return into how many parts a run is divided, each on one core; `ALL_CORES` if all cores share it."""
        return self._parts[self._tuned_rows(rows)]

    def _tuned_rows(self, rows: int) -> int:
        """The number of rows that was measured, and that tells most about these."""
        return max(row_count for row_count in self._parts if row_count <= rows)

    def tune(
        self,
        example: Callable[[int], Arrays],
        outputs: Sequence[str],
        batch_axes: Mapping[str, int],
        row_counts: Sequence[int],
    ) -> dict[int, float]:
        fastest: dict[int, float] = {}
        if self._open_for is not None:
            self._one_core = self._open_for(1)
            # It holds the bytes of the graph's file.
            self._open_for = None
        self._batch_axes = batch_axes
        for rows in row_counts:
            feeds = example(rows)
            # Rows that depend on each other stay together, on one core or on all.
            most_parts = min(rows, self._cores) if batch_axes else 1
            seconds = {
                parts: self._seconds(feeds, outputs, parts) for parts in _choices(most_parts)
            }
            for _ in range(CHECKS):
                best = min(seconds, key=seconds.__getitem__)
                if seconds[1] < WORTH_ALL_CORES * seconds[best]:
                    break
                for parts in (1, best):
                    again = self._seconds(feeds, outputs, parts)
                    seconds[parts] = min(seconds[parts], again)
            best = min(seconds, key=seconds.__getitem__)
            # New dicts, since others may be looking through the old ones.
            self._gains = {**self._gains, rows: seconds[1] / seconds[best]}
            self._parts = {**self._parts, rows: best}
            fastest[rows] = seconds[best]
        if self._one_core is not None and ALL_CORES not in self._parts.values():
            self._all_cores = self._one_core
        return fastest

    def _rows(self, feeds: Arrays) -> int:
        for name, array in feeds.items():
            axis = self._batch_axes.get(name)
            if axis is not None:
                return int(array.shape[axis])
        return 1

    def _seconds(self, feeds: Arrays, outputs: Sequence[str], parts: int) -> float:
        return quickest(lambda: self._run(feeds, outputs, parts), self._clock)

    def _run(self, feeds: Arrays, outputs: Sequence[str], parts: int) -> list[np.ndarray]:
        one_core = self._one_core
        if parts == ALL_CORES or one_core is None:
            return self._all_cores.run(feeds, outputs)
        if parts == 1:
            return one_core.run(feeds, outputs)
        divided = {}  # input -> one array for each part
        for name, array in feeds.items():
            divided[name] = np.array_split(array, parts, self._batch_axes[name])
        futures = []
        for part in range(parts):
            part_feeds = {name: arrays[part] for name, arrays in divided.items()}
            futures.append(self._pool.submit(one_core.run, part_feeds, outputs))
        # All have ended before the first error is raised.
        wait(futures)
        results = [
            future.result() for future in futures
        ]  # for each part, one array for each output
        whole_outputs = []
        for name, arrays in zip(outputs, zip(*results, strict=True), strict=True):
            whole_outputs.append(_concatenate(arrays, self._batch_axes[name]))
        return whole_outputs


def _choices(most_parts: int) -> list[int]:
    """Return the numbers of parts to try: all cores on each node, powers of 2, and as many as there can be."""
    choices = [ALL_CORES]
    parts = 1
    while parts < most_parts:
        choices.append(parts)
        parts *= 2
    return [*choices, most_parts]


def _thread_pinner(cores: int) -> Callable[[], None] | None:
    """Return a function that pins each thread that calls it to another core; None if threads are not to be pinned.

    Linux would wake the threads of an idle pool on one core, and move them apart some ten milliseconds later.
    """
    # With fewer threads than cores, a pinned thread might wait for a core while another is idle.
    if cores != usable_cores() or not hasattr(os, "sched_setaffinity"):
        return None
    core_ids = sorted(os.sched_getaffinity(0))
    thread_numbers = count()

    def pin_thread() -> None:
        core = core_ids[next(thread_numbers) % cores]
        os.sched_setaffinity(0, {core})

    return pin_thread


def _concatenate(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Concatenate along the batch axis, which comes first in memory: clients get it so without another copy."""
    rows = sum(part.shape[axis] for part in parts)
    other_sizes = np.moveaxis(parts[0], axis, 0).shape[1:]
    batch_first = np.empty((rows, *other_sizes), parts[0].dtype)
    return np.concatenate(parts, axis, out=np.moveaxis(batch_first, 0, axis))
