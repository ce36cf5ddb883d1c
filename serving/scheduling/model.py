"""`Model`: an engine whose requests share runs, and whose streams keep their states."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import TIMEOUT_MAX, Condition, Thread, current_thread
from typing import Self

from deploy_rnn.errors import BusyError, ClosedError, DeployError, InputError, StreamError
from deploy_rnn.runtime import CPU, TensorSpec

from ..engine.engine import Engine
from .execution import BatchResult, execute
from .job import Job, StreamSegment
from .limits import Limits
from .queue import RequestQueue
from .request import Request, Response
from .statistics import Statistics, Tally
from .streams import StreamTable


class Model:
    """A loaded bundle that takes requests from any thread; one thread of its own runs them, several at a time.

    An answer does not depend, but for rounding, on what else is in the run.

    Args:
        path: the folder of a bundle, or an .onnx file, whose requests run one by one.
        name: None for the bundle's.
        provider: the onnxruntime execution provider; there is no silent fallback.
        threads: cores that one run may use; None for all.
        limits: how much it takes on.
        clock: what it measures waiting by.

    Attributes:
        inputs, outputs: batch-first, as those of `Engine`.
        lengths: inputs that are the lengths of the rows.
        states: inputs that carry a state -> the outputs that give it.
        streaming: whether it holds streams.
        optional: inputs that a client may leave out.
        max_batch: rows of one request; 0 if its tensors have no axis of rows.

    Raises:
        as for `Engine`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        provider: str = CPU,
        threads: int | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self._engine = Engine(path, provider=provider, threads=threads)
        self.name = name or self._engine.name
        self._engine.warm_up()
        signature = self._engine.signature
        self.inputs: tuple[TensorSpec, ...] = self._engine.inputs
        self.outputs: tuple[TensorSpec, ...] = self._engine.outputs
        self.lengths = frozenset(signature.lengths)
        self.states: Mapping[str, str] = signature.states
        self.streaming = bool(self.states)
        self.optional = signature.optional
        self._limits = limits or Limits()
        self.max_batch = self._limits.max_rows if signature.rows_axis else 0
        self._clock = clock
        self._tally, self._streams = Tally(), StreamTable(self._limits)
        self._waiting = RequestQueue(self._engine, self._limits, self._streams)
        self._changed, self._closed = Condition(), False
        self._thread = Thread(target=self._serve, name=f"deploy-rnn {self.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def submit(self, request: Request) -> "Future[Response]":
        """Queue a request. Its future gets the answer, or a DeadlineError, StreamError, InputError or RunError.

        A chunk of a stream gets the outputs that are no states, unless it names others.

        Raises:
            InputError: inputs that the model does not take, or too many rows or steps.
            StreamError: a stream that is unknown or gone, or started twice.
            BusyError: the queue is full, or the table of streams.
            ClosedError: the model takes no more requests.
        """
        try:
            job = self._job(request)
            with self._changed:
                self._enter(job, request)
                self._changed.notify()
        except DeployError:
            with self._changed:
                self._tally.failures += 1
            raise
        return job.future

    def infer(self, request: Request) -> Response:
        """`submit`, and wait."""
        return self.submit(request).result()

    def holds(self, sequence: int | str) -> bool:
        """Whether this stream lives here."""
        with self._changed:
            self._streams.expire(self._clock())
            return sequence in self._streams

    def statistics(self) -> Statistics:
        """What it has done so far."""
        with self._changed:
            self._streams.expire(self._clock())
            return self._tally.snapshot(len(self._waiting), len(self._streams))

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, and run those that wait.

        Args:
            timeout: seconds after which those that still wait get a ClosedError; None for as long as it takes.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if current_thread() is not self._thread:
            self._thread.join(timeout)
        if timeout is not None:
            self._refuse_all()

    def _job(self, request: Request) -> Job:
        self._check_stream(request)
        feeds = self._engine.feeds(request.inputs)
        if feeds.rows > self._limits.max_rows:
            raise InputError(f"the request has {feeds.rows} rows; send at most {self._limits.max_rows} at once.")
        if (feeds.steps or 0) > self._limits.max_steps:
            raise InputError(f"the request has {feeds.steps} steps; `max_steps` is {self._limits.max_steps}.")
        outputs = self._engine.wanted(self._named(request))
        joins = self._engine.joins(outputs)
        arrived = self._clock()
        deadline = None if request.timeout is None else arrived + request.timeout
        return Job(feeds, outputs, joins, arrived, deadline)

    def _named(self, request: Request) -> Sequence[str] | None:
        if request.outputs is not None or request.sequence is None:
            return request.outputs
        states = set(self.states.values())
        return [spec.name for spec in self.outputs if spec.name not in states] or None

    def _check_stream(self, request: Request) -> None:
        if request.sequence is None:
            if request.start or request.end:
                raise StreamError("`start` or `end` is set without a `sequence`; name the stream that it is for.")
            return
        if not self.streaming:
            raise StreamError(f"model {self.name!r} has no states and holds no streams; leave out `sequence`.")
        if given := [name for name in self.states if name in request.inputs]:
            raise StreamError(
                f"`{given[0]}` is given together with a `sequence`, whose states the server holds; leave out one."
            )

    def _enter(self, job: Job, request: Request) -> None:
        """Into the queue; a stream starts only if there is room for its chunk."""
        if self._closed:
            raise ClosedError(f"model {self.name!r} is being unloaded and takes no more requests.")
        if len(self._waiting) >= self._limits.max_queue:
            raise BusyError(f"{len(self._waiting)} requests wait for model {self.name!r}, its most; try again later.")
        if request.sequence is not None:
            job.stream = self._streams.admit(
                request.sequence, job.rows, start=request.start, end=request.end, now=job.arrived
            )
        self._waiting.add(job)

    def _serve(self) -> None:
        """The thread: whatever ends it, nobody waits in vain."""
        try:
            while self._wait():
                with self._changed:
                    lanes, dead = self._waiting.take(self._clock())
                for job, why in dead:
                    self._refuse(job, why)
                if lanes:
                    self._run(lanes)
        finally:
            self._refuse_all()

    def _wait(self) -> bool:
        """Until there is something to run; False if there will be nothing any more."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._streams.expire(self._clock())
                expiry = self._streams.next_expiry()
                self._changed.wait(None if expiry is None else _bounded(expiry - self._clock()))
            while self._waiting and not self._waiting.full and not self._closed:
                left = self._waiting.oldest.arrived + self._limits.max_wait - self._clock()
                if left <= 0:
                    break
                self._changed.wait(_bounded(left))
            return bool(self._waiting)

    def _run(self, lanes: Sequence[StreamSegment]) -> None:
        """1. All lanes in one run. 2. If that fails, each by itself: one request's fault is not that of the others.
        3. If that fails too, chunk by chunk."""
        started, before = self._clock(), time.perf_counter()
        try:
            executed = execute(self._engine, lanes)
        except Exception as error:  # whatever it is, those who wait are told
            if len(lanes) == len(lanes[0]) == 1:
                self._failed(lanes[0][0], error)
                return
            for lane in lanes if len(lanes) > 1 else [[job] for job in lanes[0]]:
                self._run_if_whole(lane)
            return
        self._ran(lanes, executed, started, time.perf_counter() - before)

    def _run_if_whole(self, lane: StreamSegment) -> None:
        """Unless the chunk before has just failed."""
        stream = lane[0].stream
        if stream and stream.broken:
            for job in lane:
                self._refuse(job, StreamError(f"stream {stream.name!r} {stream.broken}."))
        else:
            self._run([lane])

    def _failed(self, job: Job, error: Exception) -> None:
        if job.stream:
            with self._changed:
                self._streams.end(job.stream, f"a chunk of it failed ({error})")
        self._refuse(job, error)

    def _ran(self, lanes: Sequence[StreamSegment], executed: BatchResult, started: float, seconds: float) -> None:
        """Note what was run and where the streams stand; then answer."""
        with self._changed:
            self._tally.ran(executed.rows, seconds, executed.real, executed.padded)
            for lane, state in zip(lanes, executed.states, strict=True):
                for job in lane:
                    self._tally.answered(job.rows, started - job.arrived)
                    if job.stream:
                        job.stream.states = state
                        self._streams.answered(job.stream, self._clock())
        for lane, answers in zip(lanes, executed.outputs, strict=True):
            for job, answer in zip(lane, answers, strict=True):
                job.future.set_result(Response(answer, started - job.arrived, seconds, executed.rows))

    def _refuse(self, job: Job, why: Exception | None) -> None:
        """Tell the one who waits; None if it was cancelled, and nobody does."""
        with self._changed:
            self._tally.failures += 1
        if job.claim() and why is not None:
            job.future.set_exception(why)

    def _refuse_all(self) -> None:
        with self._changed:
            self._closed = True
            left = self._waiting.clear()
        for job in left:
            self._refuse(job, ClosedError(f"model {self.name!r} was unloaded before the request was run."))


def _bounded(seconds: float) -> float:
    """As a lock can wait: a limit may be infinite."""
    return min(max(0.0, seconds), TIMEOUT_MAX)
