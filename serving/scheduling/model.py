"""`Model`: an engine whose requests share runs, and whose streams keep their states."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from itertools import chain
from math import ceil
from pathlib import Path
from threading import TIMEOUT_MAX, Condition, Thread, current_thread
from typing import NamedTuple, Self

from deploy_rnn.errors import (
    BusyError,
    ClosedError,
    DeployError,
    InputError,
    LoadError,
    RunError,
    StreamError,
    TooLargeError,
)
from deploy_rnn.runtime import CPU, TensorSpec, provider_named

from ..engine.arrays import Arrays
from ..engine.batch_engine import BatchEngine
from ..engine.feeds import Shapes
from ..engine.opening import open_model
from ..engine.own_process import OwnProcess
from .core_slots import CoreSlots, Slot
from .execution import BatchResult, execute
from .limits import Limits, lower
from .queue import Job, RequestQueue, StreamSegment
from .request import Request, Response
from .run_threads import let_others_go_first
from .splitting import SplitJob
from .statistics import Statistics, Tally
from .streams import Stream, StreamTable

MAX_KNOWN = 1024
"""Plans that are remembered."""


class Plan(NamedTuple):
    """How a request is run, by its shapes and by the outputs that it asks for.

    Attributes:
        outputs: their names.
        joins: whether another chunk of its stream may follow in the same run.
        pieces: in how many runs it has its answer.
    """

    outputs: Sequence[str]
    joins: bool
    pieces: int


class Model(OwnProcess):
    """A loaded bundle that takes requests from any thread, and runs them in threads of its own: as many runs at a time
    as there are cores, and in each of them as many requests as pays.

    An answer does not depend, but for rounding, on what else is in the run.

    Args:
        path: the folder of a bundle, or an .onnx file, whose requests and chunks run one by one.
        name: None for the bundle's.
        provider: the onnxruntime execution provider; there is no silent fallback.
        threads: cores that it may use; None for all.
        precision: in which it computes, such as "int8", which a bundle must have; None for the only one.
        limits: how much it takes on.
        cores: what its runs share with those of other models; None for cores of its own. Without meaning for a
            provider that does not run on them.
        clock: returns seconds; measures waiting, deadlines and idle streams.

    Attributes:
        inputs, outputs: batch-first, as those of `Engine`.
        lengths: inputs that are the lengths of the rows.
        states: inputs that carry a state -> the outputs that give it.
        streaming: whether it holds streams.
        optional: inputs that a client may leave out.
        max_batch: rows of one run; 0 if its tensors have no batch axis.
        precision: "float32", "float64", "float16" or "int8".

    Raises:
        DeployError: as for `Engine`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        provider: str = CPU,
        threads: int | None = None,
        precision: str | None = None,
        limits: Limits | None = None,
        cores: CoreSlots | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._note_process()
        self.path = Path(path)
        self._engine = BatchEngine(open_model(self.path, provider, threads, precision))
        self.name = name or self._engine.name
        try:
            self._engine.warm_up(side_by_side=True)
        except (InputError, RunError) as error:  # not of a request
            raise LoadError(f"{str(path)!r} cannot be run: {error}") from error
        on_cores = provider_named(provider).uses_cores
        self._cores = cores if cores and on_cores else CoreSlots(self._engine.cores)
        signature = self._engine.signature
        self.inputs: tuple[TensorSpec, ...] = self._engine.inputs
        self.outputs: tuple[TensorSpec, ...] = self._engine.outputs
        self.precision = self._engine.precision
        self.lengths = frozenset(signature.lengths)
        self.states: Mapping[str, str] = signature.states
        self.streaming = bool(self.states)
        self.optional = signature.optional
        self._limits = limits or Limits()
        max_rows = self._limits.max_rows if signature.batch_axis else 0
        self.max_batch = lower(max_rows, self._engine.most_rows)
        self._clock = clock
        self._plans: dict[Hashable, Plan] = {}
        # Guards everything below; notified when a request arrives or a stream can go on, and when the model closes.
        self._changed = Condition()
        self._closed = False
        self._retired = False
        self._tally = Tally()
        self._streams = StreamTable(self._limits)
        self._queue = RequestQueue(self._engine, self._limits, self._streams)
        self._threads = []
        for number in range(self._engine.cores):
            name = f"deploy-rnn {self.name} {number}"
            self._threads.append(Thread(target=self._serve, name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def submit(self, request: Request) -> "Future[Response]":
        """Queue a request. Its future gets the answer, or a DeadlineError, StreamError, InputError or RunError.

        A chunk of a stream gets the outputs that are not states, unless it names others.

        Raises:
            InputError: inputs that the model does not take, or too many rows or steps.
            TooLargeError: too many rows times steps, or outputs that are too large.
            StreamError: a stream that is unknown or gone, or a restart that is refused.
            BusyError: the queue is full, or the table of streams.
            ClosedError: the model takes no more requests.
            RunError: this is a fork of the process that opened the model.
        """
        self._check_process()
        try:
            job = self._make_job(request)
            with self._changed:
                self._enqueue(job, request)
                self._changed.notify()
        except DeployError as error:
            with self._changed:
                self._tally.failed(error)
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
        """What the model has done so far."""
        with self._changed:
            self._streams.expire(self._clock())
            return self._tally.snapshot(queued=len(self._queue), streams=len(self._streams))

    def retire(self) -> None:
        """Take only chunks of the streams that live here from now on; any other request gets a ClosedError."""
        with self._changed:
            self._retired = True

    def end_streams(self, reason: str, sequence: int | str | None = None) -> list[int | str]:
        """End all streams, or the one of this name; their chunks that were accepted are answered, further ones are
        refused: "stream NAME {reason}."

        Returns:
            The names of the streams that ended.
        """
        with self._changed:
            return self._streams.end(reason, sequence)

    def ended_streams(self) -> dict[int | str, str]:
        """Streams that have ended or expired -> why, as for `end_streams`; the latest of them."""
        with self._changed:
            return self._streams.ended()

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, and run those that wait.

        Args:
            timeout: seconds after which those that still wait get a ClosedError; None for as long as it takes.
        """
        if self._is_elsewhere():
            return  # there is nothing to end in a fork
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            # The callback of a future may close the model, and runs in the very thread that would be waited for.
            if thread is not current_thread():
                thread.join(None if until is None else max(0.0, until - time.monotonic()))
        if timeout is not None:
            self._refuse_all()

    def _make_job(self, request: Request) -> Job:
        """Check a request as far as it can be done without the lock."""
        self._check_stream(request)
        shapes = self._engine.check_shapes(request.inputs)
        plan = self._plan(request, shapes)
        feeds = self._engine.check_inputs(_own(request.inputs), shapes)
        arrived = self._clock()
        deadline = None if request.timeout is None else arrived + request.timeout
        job = Job(feeds, plan.outputs, plan.joins, arrived, deadline)
        if plan.pieces == 1:
            return job
        return SplitJob(job, plan.pieces, self._engine.longest_row(feeds))

    def _plan(self, request: Request, shapes: Shapes) -> Plan:
        """How a request is run; the plan of one is that of all that are like it."""
        outputs = request.outputs
        if outputs is not None:
            outputs = tuple(self._engine.check_outputs(outputs))
        key = (shapes, outputs, request.sequence is not None)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(request, shapes)
            if len(self._plans) >= MAX_KNOWN:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _make_plan(self, request: Request, shapes: Shapes) -> Plan:
        """
        Raises:
            InputError, TooLargeError: the request is too large, or asks for outputs that there are not.
        """
        if (shapes.steps or 0) > self._limits.max_steps:
            raise InputError(
                f"the request has {shapes.steps} steps; send at most {self._limits.max_steps} at once."
            )
        pieces = self._pieces(request, shapes)
        self._check_row_steps(shapes, pieces)
        outputs = self._engine.check_outputs(self._output_names(request))
        output_bytes = self._engine.output_bytes(shapes, outputs)
        if output_bytes > self._limits.max_output_bytes:
            raise TooLargeError(
                f"the outputs would have {output_bytes} bytes; the limit is {self._limits.max_output_bytes}: ask for "
                "fewer outputs, rows or steps."
            )
        joins = self.streaming and self._engine.can_join_chunks(outputs)
        return Plan(outputs, joins, pieces)

    def _pieces(self, request: Request, shapes: Shapes) -> int:
        """In how many runs a request has its answer.

        Raises:
            InputError: it has more rows than a run takes, and they must run together.
        """
        most_rows = lower(self._limits.max_rows, self._engine.most_rows)
        if shapes.rows <= most_rows:
            return 1
        is_trimmed = bool(self._engine.signature.trimmed_axes)
        reason = ""
        if request.sequence is not None:
            reason = "a chunk of a stream is one run"
        elif not self._engine.rows_are_independent():
            reason = "the rows of this model are not known to be independent of each other"
        elif is_trimmed and (most_rows == 1 or not self._engine.knows_longest_row):
            reason = "the sizes of this model's outputs depend on all rows"
        if reason:
            raise InputError(
                f"the request has {shapes.rows} rows; send at most {most_rows} at once: {reason}."
            )
        # Each run of a model that trims its outputs has the longest row, too.
        return ceil(shapes.rows / (most_rows - is_trimmed))

    def _check_row_steps(self, shapes: Shapes, pieces: int) -> None:
        """Raises: TooLargeError: a run would have too many rows times steps."""
        rows = ceil(shapes.rows / pieces)
        row_steps = rows * (shapes.steps or 1)
        if row_steps > self._limits.max_row_steps:
            run = "the request" if pieces == 1 else "each run of the request"
            raise TooLargeError(
                f"{run} has {rows} rows of {shapes.steps} steps, which is {row_steps}; send at most "
                f"{self._limits.max_row_steps} rows times steps at once."
            )

    def _check_stream(self, request: Request) -> None:
        if request.sequence is None:
            if request.start or request.end:
                raise StreamError(
                    "`start` or `end` is set without a `sequence`; name the stream that it is for."
                )
            return
        sequence = request.sequence
        # True would be stream 1.
        if isinstance(sequence, bool) or not isinstance(sequence, int | str):
            raise InputError(f"`sequence` (={sequence!r}) must be an integer or a string.")
        if not self.streaming:
            raise StreamError(
                f"model {self.name!r} has no states and holds no streams; a request must not name one."
            )
        for name in self.states:
            if name in request.inputs:
                raise StreamError(
                    f"`{name}` is given in a chunk of a stream, whose states the server holds; leave it out."
                )

    def _output_names(self, request: Request) -> Sequence[str] | None:
        """The names wanted; None for all. A chunk's default leaves out the states, unless they are all there is."""
        if request.outputs is not None or request.sequence is None:
            return request.outputs
        states = set(self.states.values())
        return [spec.name for spec in self.outputs if spec.name not in states] or None

    def _enqueue(self, job: Job, request: Request) -> None:
        """Put a request into the queue; a stream starts only if there is room for its chunk."""
        if self._closed or (self._retired and not self._continues(request)):
            raise ClosedError(f"model {self.name!r} is being unloaded and takes no more requests.")
        if len(self._queue) >= self._limits.max_queue:
            raise BusyError(
                f"{len(self._queue)} requests wait for model {self.name!r}, which is its limit; try again later."
            )
        queued_bytes = self._queue.input_bytes
        if self._queue and queued_bytes + job.input_bytes > self._limits.max_queue_bytes:
            raise BusyError(
                f"{queued_bytes} bytes of inputs wait for model {self.name!r}, whose limit is "
                f"{self._limits.max_queue_bytes}; try again later."
            )
        if request.sequence is not None:
            job.stream = self._streams.admit(
                request.sequence, job.rows, start=request.start, end=request.end, now=job.arrived
            )
            job.chunk = job.stream.admitted
        self._queue.add(job)

    def _continues(self, request: Request) -> bool:
        """Whether a request is for a stream that lives here, and does not begin it anew."""
        begins = request.start and not self._limits.refuse_restart
        return request.sequence in self._streams and not begins

    def _serve(self) -> None:
        """Run what is queued until the model is closed. Even if this fails, no client waits in vain."""
        let_others_go_first()
        try:
            while self._wait_for_work():
                with self._cores.taken() as slot:
                    self._run_next(slot)
        finally:
            self._refuse_all()

    def _run_next(self, slot: Slot) -> None:
        """Run what is due, if another thread has not taken it meanwhile."""
        with self._changed:
            batch, dropped = self._queue.take(self._clock())
            others_wait = self._queue.can_run
        for job, reason in dropped:
            self._refuse(job, reason)
        if not batch:
            return
        try:
            self._run(batch, lambda: not others_wait and self._cores.widen(slot))
        except Exception as error:  # of this class, such as for lack of memory: the thread goes on
            for job in chain.from_iterable(batch):
                if not job.request.future.done():
                    self._fail(job, error)
        finally:
            streams = [segment[0].stream for segment in batch if segment[0].stream]
            if streams:
                self._go_on(streams)

    def _go_on(self, streams: Sequence[Stream]) -> None:
        """Let the next chunks of streams run, whose run has ended; some may have come meanwhile."""
        with self._changed:
            for stream in streams:
                stream.running = False
            self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        """Wait until a batch is due; False once the model is closed and nothing is left to run.

        Another thread may take the batch before this one does.
        """
        with self._changed:
            while not self._queue.can_run and (self._queue or not self._closed):
                # Idle streams must give back their memory even if no request comes.
                self._streams.expire(self._clock())
                self._wait_for_change(until=self._streams.next_expiry())
            wait = self._limits.max_wait
            while wait and self._queue.can_run and not self._queue.full and not self._closed:
                due = self._queue.oldest.arrived + wait
                if due <= self._clock():
                    break
                self._wait_for_change(until=due)
            return bool(self._queue) or not self._closed

    def _wait_for_change(self, until: float | None) -> None:
        """Wait until something has changed, or the clock says `until`; None for no limit."""
        seconds = None
        if until is not None:
            seconds = max(0.0, until - self._clock())
            seconds = min(
                seconds, TIMEOUT_MAX
            )  # a limit may be infinite, which a condition does not take
        self._changed.wait(seconds)

    def _run(self, batch: Sequence[StreamSegment], get_all_cores: Callable[[], bool]) -> None:
        """Run a batch, and answer its requests."""
        started = self._clock()
        before = time.perf_counter()
        try:
            result = execute(self._engine, batch, get_all_cores)
        except Exception as error:  # of any type: those who wait must be told
            self._run_in_parts(batch, error)
        else:
            self._answer(batch, result, started, time.perf_counter() - before)

    def _run_in_parts(self, batch: Sequence[StreamSegment], error: Exception) -> None:
        """Run a batch that has failed again in parts, so that the fault of one request is not that of the others.

        1. Several segments: each by itself.
        2. One segment of several chunks: each by itself, up to the one that fails.
        3. A single request: the error is its own.
        """
        if len(batch) > 1:
            for segment in batch:
                self._run([segment], _keep_one_core)
        elif len(batch[0]) > 1:
            for job in batch[0]:
                self._run_unless_broken(job)
        else:
            self._fail(batch[0][0], error)

    def _run_unless_broken(self, job: Job) -> None:
        """Run a chunk, unless the one before it has just failed."""
        if job.stream and job.is_lost:
            self._refuse(job, job.stream.error())
        else:
            self._run([[job]], _keep_one_core)

    def _fail(self, job: Job, error: Exception) -> None:
        if job.stream:
            with self._changed:
                self._streams.fail(job.stream, job.chunk, f"a chunk of it failed ({error})")
        self._refuse(job, error)

    def _answer(
        self, batch: Sequence[StreamSegment], result: BatchResult, started: float, seconds: float
    ) -> None:
        """Store the states, count, and only then answer.

        As soon as a client has its answer it may ask for the statistics, or send its next chunk.
        """
        answers = self._collect(batch, result, started, seconds)
        with self._changed:
            self._tally.ran(result.rows, seconds, result.real_steps, result.padded_steps)
            for job, response in answers:
                if job.claim():
                    self._tally.answered(job.feeds.rows, response.queued, response.computed)
                else:
                    self._tally.failed(CancelledError())
            for segment, states in zip(batch, result.states, strict=True):
                for job in segment:
                    if job.stream:
                        job.stream.states = states
                        self._streams.answered(job.stream, self._clock())
        for job, response in answers:
            if job.claim():
                job.future.set_result(response)

    def _collect(
        self, batch: Sequence[StreamSegment], result: BatchResult, started: float, seconds: float
    ) -> list[tuple[Job, Response]]:
        """The requests that have their answer with this run."""
        answers = []
        for segment, segment_outputs in zip(batch, result.outputs, strict=True):
            for job, outputs in zip(segment, segment_outputs, strict=True):
                response = Response(outputs, started - job.arrived, seconds, result.rows)
                try:
                    whole = job.collect(response)
                except Exception as error:  # of this request, such as for lack of memory
                    self._fail(job, error)
                    continue
                if whole is not None:
                    answers.append((job.request, whole))
        return answers

    def _refuse(self, job: Job, reason: Exception) -> None:
        """Count a request that is not answered, and tell those who wait why; for a cancelled one nobody does."""
        job = job.request
        with self._changed:
            if job.refused:
                return  # by another piece of it
            job.refused = True
            self._queue.discard(job)
            self._tally.failed(reason)
        if job.claim():
            job.future.set_exception(reason)

    def _refuse_all(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            jobs = self._queue.clear()
        for job in jobs:
            self._refuse(
                job, ClosedError(f"model {self.name!r} was unloaded before the request was run.")
            )


def _own(arrays: Arrays) -> Arrays:
    """The arrays of a caller, who may change them as soon as the request is accepted."""
    own = {}
    for name, array in arrays.items():
        # Those of a message that came over the network cannot be changed.
        own[name] = array.copy() if array.flags.writeable else array
    return own


def _keep_one_core() -> bool:
    return False
