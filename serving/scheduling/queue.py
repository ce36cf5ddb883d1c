"""`RequestQueue`: the requests that wait for a run, and which of them are next."""

from collections.abc import Hashable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from math import inf

from deploy_rnn.errors import DeadlineError

from ..engine.batch_engine import BatchEngine
from ..engine.feeds import Feeds
from .batching import choose_rows, choose_segments
from .limits import Limits, lower
from .request import Response
from .streams import Stream, StreamTable

WINDOW = 256
"""A batch is chosen from this many of the oldest requests: more do not fill it better, and choosing takes longer."""

MAX_KNOWN_TIMES = 8192
"""Numbers of rows and steps whose time of a run is remembered."""


@dataclass(eq=False)
class Job:
    """A request that waits for its run.

    Attributes:
        feeds: its inputs, checked.
        outputs: the names wanted.
        joins: whether another chunk of its stream may follow in the same run.
        arrived: when it was accepted, by the clock of the model.
        deadline: when nobody waits for the answer any more; None for never.
        stream: the stream that it is a chunk of.
        chunk: its number among the chunks of the stream.
        future: gets the answer.
        claimed: True or False once claimed, None before.
        refused: whether its client has been told an error.
        steps: of its inputs.
        key: requests that differ in an axis other than rows and steps, or in what the model does with their steps,
            cannot share a run.
        input_bytes: of its inputs.
    """

    feeds: Feeds
    outputs: Sequence[str]
    joins: bool
    arrived: float
    deadline: float | None
    stream: Stream | None = None
    chunk: int = 0
    future: "Future[Response]" = field(default_factory=Future)
    claimed: bool | None = None
    refused: bool = False
    steps: int = field(init=False)
    key: Hashable = field(init=False)
    input_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        # Each is asked for many times while the request waits.
        self.steps = self.feeds.steps or 1
        self.key = (self.feeds.other_sizes, self.feeds.step_ranges)
        self.input_bytes = sum([array.nbytes for array in self.feeds.arrays.values()])

    @property
    def request(self) -> "Job":
        """The request that a client waits for, of which this may be a piece."""
        return self

    @property
    def rows(self) -> int:
        """Of the next run that takes it."""
        return self.feeds.rows

    @property
    def must_wait(self) -> bool:
        """Whether it is a chunk of a stream whose run goes on: it needs the state that comes of it."""
        return self.stream is not None and self.stream.running

    @property
    def is_lost(self) -> bool:
        """Whether it is a chunk that has no state to start from, since one before it was not run."""
        return self.stream is not None and self.stream.has_lost(self.chunk)

    def claim(self) -> bool:
        """Claim it for a run: it can no longer be cancelled. False if it has been; its waiters are then told."""
        if self.claimed is None:
            self.claimed = self.future.set_running_or_notify_cancel()
        return self.claimed

    def claim_run(self) -> bool:
        """Claim it for its next run; False if it has been cancelled."""
        return self.claim()

    def next_run(self) -> "Job":
        """What its next run takes of it."""
        return self

    @property
    def has_more(self) -> bool:
        """Whether runs have to take more of it."""
        return False

    def collect(self, response: Response) -> Response | None:
        """Take the answer of its run; the answer to its request, None as long as there is none."""
        return response


StreamSegment = Sequence[Job]
"""Chunks of one stream that run as one; or a single request."""

DroppedJob = tuple[Job, Exception]
"""A request that will not run, and the reason."""


class RequestQueue:
    """The requests of one model, in order of arrival. Not thread-safe: its user holds a lock.

    Args:
        engine: runs the requests.
        streams: whose chunks are in the queue; the chunks of a broken stream are dropped.

    Attributes:
        input_bytes: of the inputs of all that wait.
    """

    def __init__(self, engine: BatchEngine, limits: Limits, streams: StreamTable) -> None:
        self._streams = streams
        self._streaming = bool(engine.signature.states)
        max_rows = limits.max_rows if engine.rows_are_independent() else 0
        self._max_rows = lower(max_rows, engine.most_rows)
        self._max_waste = limits.max_waste if engine.padding_is_harmless() else 0.0
        max_segment_steps = limits.max_steps if engine.takes_any_steps else 0
        self._max_segment_steps = lower(max_segment_steps, engine.most_steps)
        self._max_row_steps = limits.max_row_steps
        # Of the same rows and steps again and again, for each request that may join a batch.
        self._run_seconds = lru_cache(MAX_KNOWN_TIMES)(engine.run_times.seconds)
        self._jobs: list[Job] = []
        self.input_bytes = 0
        # No request that waits has an earlier one.
        self._next_deadline = inf

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def can_run(self) -> bool:
        """Whether a request waits that is not a chunk of a stream whose run goes on."""
        if not self._streaming:
            return bool(self._jobs)
        return any(not job.must_wait for job in self._jobs)

    @property
    def oldest(self) -> Job:
        return self._jobs[0]

    @property
    def full(self) -> bool:
        """Whether the oldest requests have rows enough for a full batch; whether they fit together is not asked."""
        candidates = self._jobs[: self._max_rows]
        return sum(job.rows for job in candidates) >= self._max_rows

    def add(self, job: Job) -> None:
        self._jobs.append(job)
        self.input_bytes += job.input_bytes
        if job.deadline is not None:
            self._next_deadline = min(self._next_deadline, job.deadline)

    def discard(self, job: Job) -> None:
        """Remove a request, if it waits."""
        if job in self._jobs:
            self._remove([job])

    def clear(self) -> list[Job]:
        """Remove all requests, and return them."""
        jobs = self._jobs
        self._jobs = []
        self.input_bytes = 0
        return jobs

    def take(self, now: float) -> tuple[list[StreamSegment], list[DroppedJob]]:
        """Remove the requests that run next, and those that will not run.

        Returns:
            The next batch, claimed; and the requests that are dropped.
        """
        dropped: list[DroppedJob] = []
        # A chunk may also wait for a state that is lost.
        if self._streaming or now > self._next_deadline:
            dropped += self._drop_expired(now)
        while True:
            batch = self._choose(self._candidates())
            claims = [job.claim_run() for segment in batch for job in segment]
            if all(claims):
                return self._start(batch), dropped
            # One was cancelled while it waited: drop it, and choose again.
            dropped += self._drop_expired(now)

    def _start(self, batch: Sequence[StreamSegment]) -> list[StreamSegment]:
        """Remove what a run takes; what is left of a request waits again, behind all others."""
        parts: list[StreamSegment] = []
        self._remove([job for segment in batch for job in segment])
        for segment in batch:
            parts.append([job.next_run() for job in segment])
            for job in segment:
                if job.stream:
                    job.stream.running = True
                if job.has_more:
                    self.add(job)
        return parts

    def _candidates(self) -> list[Job]:
        """The oldest requests that can run: those of one busy stream do not keep others from running."""
        if not self._streaming:
            return self._jobs[:WINDOW]
        return list(islice((job for job in self._jobs if not job.must_wait), WINDOW))

    def _drop_expired(self, now: float) -> list[DroppedJob]:
        dropped = []
        for job in self._candidates():
            reason = _expired(job, now)
            if reason is not None:
                dropped.append((job, reason))
                if job.stream:
                    self._streams.fail(job.stream, job.chunk, str(reason))
        self._remove([job for job, _ in dropped])
        deadlines = [job.deadline for job in self._jobs if job.deadline is not None]
        self._next_deadline = min(deadlines, default=inf)
        return dropped

    def _remove(self, jobs: Sequence[Job]) -> None:
        if jobs:
            removed = set(jobs)
            self.input_bytes -= sum(job.input_bytes for job in jobs)
            self._jobs = [job for job in self._jobs if job not in removed]

    def _choose(self, candidates: Sequence[Job]) -> list[StreamSegment]:
        if not candidates:
            return []
        if not self._streaming:
            indices = choose_rows(candidates, self._max_rows, self._max_waste, self._run_seconds)
            chosen = [candidates[index] for index in indices]
            return [[job] for job in self._within_row_steps(chosen)]
        # A request of no stream is a backlog by itself.
        by_stream: dict[Stream | Job, list[Job]] = {}
        for job in candidates:
            by_stream.setdefault(job.stream or job, []).append(job)
        backlogs = list(by_stream.values())
        segments = choose_segments(backlogs, self._max_rows, self._max_segment_steps)
        return [backlogs[segment.backlog][: segment.chunks] for segment in segments]

    def _within_row_steps(self, jobs: Sequence[Job]) -> list[Job]:
        """Return as many of the jobs, the oldest first, as one run may have; each takes the steps of the longest."""
        kept: list[Job] = []
        rows = 0
        steps = 0
        for job in jobs:
            if kept and (rows + job.rows) * max(steps, job.steps) > self._max_row_steps:
                continue
            kept.append(job)
            rows += job.rows
            steps = max(steps, job.steps)
        return kept


def _expired(job: Job, now: float) -> Exception | None:
    """Return why a request is no longer to be run; None if it is."""
    if job.stream and job.is_lost:
        return job.stream.error()
    # Whoever waits for a request cancels it at its deadline, too.
    if job.deadline is not None and job.deadline < now:
        return DeadlineError(
            f"the request waited for {now - job.arrived:.3g} s, and its deadline passed."
        )
    if job.future.cancelled():
        return CancelledError("a chunk of it was cancelled")
    return None
