"""`RequestQueue`: the requests that wait for a run, and which of them are next."""

from collections.abc import Sequence

from deploy_rnn.errors import DeadlineError, DeployError, StreamError

from ..engine.engine import Engine
from . import batching, coalescing
from .job import Job, StreamSegment
from .limits import Limits
from .streams import StreamTable

WINDOW = 256
"""The oldest requests, of which a run is chosen: more make runs no fuller, and looking through them takes time."""


class RequestQueue:
    """A queue; its user holds a lock.

    Args:
        engine: that is to run them.
        streams: whose chunks are among them; those of a stream that is broken are given up.
    """

    def __init__(self, engine: Engine, limits: Limits, streams: StreamTable) -> None:
        self._limits, self._streams = limits, streams
        self._streaming = bool(engine.signature.states)
        self._max_rows = limits.max_rows if engine.rows_share else 0
        self._max_waste = limits.max_waste if engine.pads else 0.0
        self._max_joined = limits.max_steps if engine.any_steps else 0
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def oldest(self) -> Job:
        return self._jobs[0]

    @property
    def full(self) -> bool:
        """Whether the next run has no place for more rows, as far as their number says."""
        return sum(job.rows for job in self._jobs[: self._max_rows]) >= self._max_rows

    def add(self, job: Job) -> None:
        self._jobs.append(job)

    def clear(self) -> list[Job]:
        """All of them; none waits any more."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def take(self, now: float) -> tuple[list[StreamSegment], list[tuple[Job, DeployError | None]]]:
        """
        Returns:
            The next run, which can no longer be cancelled; and the requests that will not run, and why, None for those
            that were cancelled.
        """
        dead: list[tuple[Job, DeployError | None]] = []
        while True:
            dead += self._give_up(now)
            lanes = self._chosen() if self._jobs else []
            if all([job.claim() for lane in lanes for job in lane]):  # a list: every one is tried
                self._remove([job for lane in lanes for job in lane])
                return lanes, dead

    def _give_up(self, now: float) -> list[tuple[Job, DeployError | None]]:
        dead = []
        for job in self._jobs[:WINDOW]:
            doomed, why = _fate(job, now)
            if doomed:
                dead.append((job, why))
                if job.stream:
                    self._streams.end(job.stream, "a chunk of it was cancelled" if why is None else str(why))
        self._remove([job for job, _ in dead])
        return dead

    def _remove(self, jobs: Sequence[Job]) -> None:
        gone = set(map(id, jobs))
        self._jobs = [job for job in self._jobs if id(job) not in gone] if gone else self._jobs

    def _chosen(self) -> list[StreamSegment]:
        jobs = self._jobs[:WINDOW]
        if not self._streaming:
            return [[jobs[index]] for index in batching.choose_rows(jobs, self._max_rows, self._max_waste)]
        lanes: dict[int, list[Job]] = {}
        for job in jobs:
            lanes.setdefault(id(job.stream or job), []).append(job)
        waiting = list(lanes.values())
        chosen = coalescing.choose_segments(waiting, self._max_rows, self._max_joined)
        return [waiting[lane][:count] for lane, count in chosen]


def _fate(job: Job, now: float) -> tuple[bool, DeployError | None]:
    """Whether it will not be run, and why."""
    if job.stream and job.stream.broken:
        return True, StreamError(f"stream {job.stream.name!r} {job.stream.broken}.")
    if job.future.cancelled():
        return True, None
    if job.deadline is not None and job.deadline < now:
        return True, DeadlineError(f"the request waited for {now - job.arrived:.3g} s, and its deadline passed.")
    return False, None
