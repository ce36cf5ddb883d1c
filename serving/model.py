"""`Model`: a bundle that answers requests one after the other, and holds the states of its streams."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deploy_rnn.bundle import MANIFEST, Manifest, Tensor
from deploy_rnn.errors import BusyError, ClosedError, DeadlineError, InputError, StreamError
from deploy_rnn.runtime import CPU, TensorSpec

from .engine import Engine
from .request import Request, Response

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Limits:
    """What a model takes upon itself.

    Attributes:
        max_rows: rows of one run.
        max_queue: requests that wait; one more is refused.
        max_wait: seconds that a request waits for others.
        max_waste: the share of a run that may be padding.
        max_steps: steps of one request; None for any number.
        max_streams: streams at a time.
        stream_idle: seconds after which a stream that nobody asked is dropped.
    """

    max_rows: int = 64
    max_queue: int = 1024
    max_wait: float = 0.002
    max_waste: float = 0.15
    max_steps: int | None = None
    max_streams: int = 10_000
    stream_idle: float = 600.0


@dataclass(frozen=True)
class Statistics:
    """Since the model was loaded; `batch_rows` has rows -> (executions, seconds)."""

    successes: int = 0
    failures: int = 0
    executions: int = 0
    rows: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    batch_rows: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    steps_real: int = 0
    steps_padded: int = 0
    queued: int = 0
    streams: int = 0
    last_inference: float = 0.0


class Model:
    """A bundle, or one .onnx file, in this process; every tensor is batch-first."""

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        provider: str = CPU,
        threads: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.path, self._limits = Path(path), limits or Limits()
        manifest = Manifest.read(self.path) if (self.path / MANIFEST).is_file() else None
        if manifest:
            manifest.check(self.path)
        file = self.path / manifest.graphs[0].file if manifest else self.path
        self._engine = Engine(file, provider=provider, threads=threads)
        self.name = name or (manifest.name if manifest else self.path.stem)
        self._axes = _batch_axes(manifest.inputs, manifest.outputs) if manifest else {}
        self.inputs = tuple(self._spec(each) for each in self._engine.inputs)
        self.outputs = tuple(self._spec(each) for each in self._engine.outputs)
        self.lengths = frozenset(manifest.lengths if manifest else ())
        self.states = dict(manifest.states if manifest else {})
        self.streaming, self.optional = bool(self.states), frozenset(self.states)
        self.max_batch = self._limits.max_rows
        self._streams: dict[int | str, Arrays] = {}
        self._lock, self._counts, self._batches = threading.Lock(), dict[str, float](), dict[int, tuple[int, float]]()
        self._last, self._closed = 0.0, False
        self._worker = ThreadPoolExecutor(1)

    def _spec(self, spec: TensorSpec) -> TensorSpec:
        axis = self._axes.get(spec.name, 0)
        return TensorSpec(spec.name, spec.dtype, (spec.shape[axis], *spec.shape[:axis], *spec.shape[axis + 1 :]))

    def submit(self, request: Request) -> "Future[Response]":
        with self._lock:
            self._check(request)
            self._count("queued", 1)
            return self._worker.submit(self._answer, request, time.monotonic())

    def _check(self, request: Request) -> None:
        if self._closed:
            raise ClosedError(f"model `{self.name}` is being unloaded.")
        if self._counts.get("queued", 0) >= self._limits.max_queue:
            raise BusyError(f"`{self.name}` has {self._limits.max_queue} requests waiting; try again later.")
        if unknown := [name for name in request.inputs if name not in {spec.name for spec in self.inputs}]:
            raise InputError(f"there is no input `{unknown[0]}`.")
        for spec in self.inputs:
            if spec.name not in request.inputs and spec.name not in self.optional:
                raise InputError(f"input `{spec.name}` is missing.")
            array = request.inputs.get(spec.name)
            if array is not None and (array.dtype != spec.dtype or array.ndim != len(spec.shape) or not array.size):
                raise InputError(f"`{spec.name}` is {array.dtype} {list(array.shape)}, the model takes {spec}.")
        if unwanted := set(request.outputs or ()) - {spec.name for spec in self.outputs}:
            raise InputError(f"there is no output `{min(unwanted)}`.")
        if request.sequence is not None:
            self._check_stream(request)

    def _check_stream(self, request: Request) -> None:
        if not self.streaming:
            raise StreamError(f"`{self.name}` has no states, so no streams.")
        if request.start:
            if len(self._streams) >= self._limits.max_streams:
                raise BusyError(f"`{self.name}` has {self._limits.max_streams} streams; try again later.")
            self._streams[request.sequence or 0] = {}
        elif request.sequence not in self._streams:
            raise StreamError(f"there is no stream {request.sequence!r}; begin it with `sequence_start`.")

    def _answer(self, request: Request, arrived: float) -> Response:
        started = time.monotonic()
        with self._lock:
            self._count("queued", -1)
        try:
            if request.deadline is not None and started > request.deadline:
                raise DeadlineError("its time ran out before it was run.")
            outputs, rows = self._run(request)
        except Exception:
            with self._lock:
                self._count("failures", 1)
            raise
        seconds = time.monotonic() - started
        self._record(rows, started - arrived, seconds)
        return Response(outputs, started - arrived, seconds, rows)

    def _run(self, request: Request) -> tuple[Arrays, int]:
        given = dict(request.inputs)
        rows = len(next(iter(given.values())))
        held = self._streams.get(request.sequence) if request.sequence is not None else None
        for spec in self.inputs:
            if spec.name in self.states and spec.name not in given:
                sizes = [rows if isinstance(size, str) else size for size in spec.shape]
                given[spec.name] = (held or {}).get(spec.name, np.zeros(sizes, spec.dtype))
        feeds = {name: np.ascontiguousarray(self._moved(name, array, back=True)) for name, array in given.items()}
        outputs = {name: self._moved(name, array) for name, array in self._engine.run(feeds).items()}
        if held is not None and request.sequence is not None:
            held.update({first: outputs[last] for first, last in self.states.items()})
            if request.end:
                self._streams.pop(request.sequence, None)
        wanted = request.outputs or [spec.name for spec in self.outputs]
        return {name: outputs[name] for name in wanted}, rows

    def _moved(self, name: str, array: np.ndarray, *, back: bool = False) -> np.ndarray:
        axis = self._axes.get(name, 0)
        return np.moveaxis(array, 0, axis) if back else np.moveaxis(array, axis, 0)

    def _count(self, name: str, number: float) -> None:
        self._counts[name] = self._counts.get(name, 0) + number

    def _record(self, rows: int, queued: float, seconds: float) -> None:
        with self._lock:
            for name, number in {
                "successes": 1, "executions": 1, "rows": rows, "queue_seconds": queued, "compute_seconds": seconds,
            }.items():  # fmt: skip
                self._count(name, number)
            executions, spent = self._batches.get(rows, (0, 0.0))
            self._batches[rows] = (executions + 1, spent + seconds)
            self._last = time.time()

    def statistics(self) -> Statistics:
        with self._lock:
            counts = {name: number if "seconds" in name else int(number) for name, number in self._counts.items()}
            return Statistics(
                **counts,  # type: ignore[arg-type]
                batch_rows=dict(self._batches),
                streams=len(self._streams),
                last_inference=self._last,
            )

    def holds(self, sequence: int | str) -> bool:
        return sequence in self._streams

    def close(self, timeout: float | None = None) -> None:
        with self._lock:
            self._closed = True
        self._worker.shutdown(wait=True)


def _batch_axes(*tensors: tuple[Tensor, ...]) -> dict[str, int]:
    return {each.name: each.batch or 0 for group in tensors for each in group}
