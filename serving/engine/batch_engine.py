"""`BatchEngine`: from the checked inputs of one or several requests to their outputs, in one run."""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from deploy_rnn.errors import InputError
from deploy_rnn.tensor_spec import SizeRange
from deploy_rnn.timing import quickest

from .arrays import Arrays, Outputs
from .collate import collate, split
from .feeds import Feeds, Shapes
from .graphs import GraphChoice
from .opening import OpenedModel
from .probe import TrialResults, example, try_batching
from .run_times import RunTimes
from .session import Runner

Batch = Sequence[Feeds]

ShapesKey = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
"""Names, dtypes and shapes of the inputs of a request."""

MAX_KNOWN = 1024
"""Shapes that are remembered."""

RunnerSeconds = dict[Runner, dict[int, float]]
"""Graph -> rows -> seconds of a run."""

HAS_THREAD_TIME = time.get_clock_info("thread_time").resolution <= 1e-6
"""Whether this system counts the processor time of a thread finely: Windows does so in steps of 16 ms."""

MEASURED_ROWS = (1, 2, 4, 8, 16)
MEASURED_STEPS = 64
FEW_STEPS = 8
"""Where `warm_up` measures. One row tells little about several: onnxruntime's RNN operator takes them in turn, while a
loop of products takes them at once."""

MUCH_FASTER = 1.2
"""How many times as fast a graph must be to take the place of the one that was the fastest where they were exported."""

TRIAL_STEPS = (3, 7)
"""The steps of a shorter and of a longer row in the trials, where the model takes any number of them."""


class BatchEngine:
    """A loaded model whose requests can share runs; every method may be called from several threads at once.

    Rows share a run, and are padded, only if trial runs have shown that this does not change the answers of this
    model. The trials run once: in `warm_up`, or before, in the first call whose result depends on them.

    Attributes:
        name: of the model.
        inputs, outputs: as those of `Engine`.
        signature: what their axes mean, and which inputs are lengths and states.
        takes_any_steps: whether there is a graph for any number of steps.
        cores: how many runs are made at a time: more would be no faster.
        run_times: of runs on one core each, or of any runs if one is made at a time; measured by `warm_up`.
        may_gain_from_cores: whether a run may be worth all cores; False once `warm_up` has found none that is.
    """

    def __init__(self, opened: OpenedModel) -> None:
        self.name = opened.name
        self.inputs = opened.inputs
        self.outputs = opened.outputs
        self.precision = opened.precision
        self.signature = replace(opened.signature, least_sizes=opened.graphs.least_sizes)
        self.takes_any_steps = bool(opened.graphs.dynamic)
        self.cores = opened.cores
        self.run_times = RunTimes({})
        self.may_gain_from_cores = True
        self._graphs = opened.graphs
        self._output_names = [spec.name for spec in opened.outputs]
        self._known_shapes: dict[ShapesKey, Shapes] = {}
        self._trial_results: TrialResults | None = None
        self._trial_lock = Lock()

    def check_inputs(self, inputs: Arrays, shapes: Shapes | None = None) -> Feeds:
        """Return the inputs of one request, checked and completed.

        Args:
            shapes: what `check_shapes` has returned for them, if it was asked.

        Raises:
            InputError: an input that is missing, unknown, or of the wrong dtype or shape; a length out of range; steps
                that no graph takes.
        """
        return Feeds.of(inputs, self.signature, shapes or self.check_shapes(inputs))

    def check_shapes(self, inputs: Arrays) -> Shapes:
        """Return what the shapes of the inputs of one request tell; the same object for the same shapes, mostly.

        Raises:
            InputError: as for `check_inputs`, whatever is in the inputs.
        """
        key = _shapes_key(inputs)
        shapes = None if key is None else self._known_shapes.get(key)
        if shapes is not None:
            return shapes
        shapes = Shapes.of(inputs, self.signature)
        if not self._graphs.take_all_sizes:
            self.choose([shapes])
            shapes = replace(shapes, step_ranges=self._step_ranges(shapes.steps))
        if key is not None:
            if len(self._known_shapes) >= MAX_KNOWN:
                self._known_shapes.clear()
            self._known_shapes[key] = shapes
        return shapes

    def check_outputs(self, outputs: Sequence[str] | None) -> Sequence[str]:
        """Return the names of the outputs to compute; None stands for all.

        Raises:
            InputError: an unknown output, or no output.
        """
        names = self._output_names
        if outputs is None:
            return names
        is_list = isinstance(outputs, Collection) and not isinstance(outputs, str)
        if not is_list or not outputs:
            raise InputError(
                f"`outputs` (={outputs!r}) must be a list of names, or None for all ({', '.join(names)})."
            )
        for name in outputs:
            if name not in names:
                raise InputError(
                    f"there is no output `{name}`; the outputs are {', '.join(names)}."
                )
        return list(outputs)

    def output_bytes(self, feeds: Feeds | Shapes, outputs: Sequence[str]) -> int:
        """Return the bytes of these outputs of a request; a size that the inputs do not tell counts as 1."""
        sizes = dict(feeds.other_sizes)
        total = 0
        for tensor in self.signature.client_outputs:
            if tensor.name not in outputs:
                continue
            count = 1
            for axis, size in enumerate(tensor.shape):
                if axis == tensor.batch:
                    count *= feeds.rows
                elif axis == tensor.time:
                    count *= feeds.steps or 1
                else:
                    count *= size if isinstance(size, int) else sizes.get(size, 1)
            total += count * np.dtype(tensor.dtype).itemsize
        return total

    def choose(self, batch: Sequence[Feeds | Shapes], *, one_core: bool = False) -> GraphChoice:
        """Choose the graph for a run of these requests, and its steps.

        Args:
            one_core: whether the run has one core only.

        Raises:
            InputError: no graph takes their steps, or other sizes of theirs.
        """
        rows = sum(feeds.rows for feeds in batch)
        step_counts = [feeds.steps for feeds in batch if feeds.steps is not None]
        steps = max(step_counts, default=None)
        return self._graphs.pick(
            steps,
            may_pad=self.padding_is_harmless,
            rows=rows,
            one_core=one_core,
            sizes=self._sizes(batch),
            place=self._place,
        )

    def run(
        self,
        choice: GraphChoice,
        batch: Batch,
        outputs: Sequence[str],
        *,
        one_core: bool = False,
    ) -> list[Outputs]:
        """Run requests together, and return the outputs of each.

        Args:
            choice: what `choose` returned for them.
            batch: requests with equal `other_sizes`; only one unless `rows_are_independent`, and of equal steps unless
                `padding_is_harmless`.
            outputs: the names of the outputs to compute.
            one_core: use one core only.

        Raises:
            InputError, RunError: as for `Runner.run`.
        """
        if not choice.runner.prefers_few_row_counts:
            return self._run(choice, batch, outputs, one_core)
        with_spare_rows = self._with_spare_rows(batch)
        if not self._takes_rows(choice.runner, sum(feeds.rows for feeds in with_spare_rows)):
            with_spare_rows = batch
        answers = self._run(choice, with_spare_rows, outputs)
        return answers[: len(batch)]

    def can_join_chunks(self, outputs: Sequence[str]) -> bool:
        """Return whether chunks of a stream may run end to end, and these outputs be split among them again."""
        for tensor in self.signature.inputs:
            # Chunks can differ in such an input, and one run takes it once.
            if tensor.time is None and tensor.name not in self.signature.states:
                return False
        over_time = self.signature.outputs_over_time.issuperset(outputs)
        return over_time and self.rows_are_independent()

    def rows_are_independent(self) -> bool:
        """Return whether requests may share a run: no row changes the answer of another."""
        return self._trials().rows_are_independent

    def padding_is_harmless(self) -> bool:
        """Return whether rows may be padded: what is beyond a row's end does not change its answer."""
        return self._trials().padding_is_harmless

    @property
    def knows_longest_row(self) -> bool:
        """Whether lengths tell by which row the model trims its outputs."""
        return bool(self.signature.trimmed_axes) and len(self.signature.lengths) == 1

    def longest_row(self, feeds: Feeds) -> int | None:
        """Return the row by whose length the model trims its outputs; None if it does not."""
        if not self.knows_longest_row:
            return None
        (name,) = self.signature.lengths
        return int(feeds.arrays[name].argmax())

    def warm_up(self, *, side_by_side: bool = False) -> None:
        """Run each graph, and measure which way is the fastest: how to use the cores, from which length on to pad to a
        bucket, and which dynamic graph to use for how many rows.

        Args:
            side_by_side: measure runs on one core, too.
        """
        measured_rows = MEASURED_ROWS if self.rows_are_independent() else (1,)
        row_counts = self._row_counts_in_range(measured_rows)
        seconds = self._warm_up_graphs(row_counts)
        if side_by_side:
            # On a single core these are the same runs.
            self._measure_run_times(row_counts, seconds if self.cores == 1 else {})
        runners = [*self._graphs.dynamic, *self._graphs.buckets.values()]
        self.may_gain_from_cores = any(
            runner.gains_from_cores(rows) for runner in runners for rows in row_counts
        )

    def fastest_graph(self, rows: int, steps: int) -> int:
        """Measure which graph for any number of steps takes least for such a run: its number, as `use_graph` takes it.

        It is 0 unless another is much faster, so that the choice is the same whenever it is made: graphs differ in the
        last digits of their answers.
        """
        if len(self._graphs.dynamic) < 2:
            return 0
        rows = self._row_counts_in_range([rows])[0]
        seconds = []
        for runner in self._graphs.dynamic:
            feeds = example(self.signature, rows, self._steps_within(runner, steps))
            choice = GraphChoice(runner, feeds.steps)
            run = partial(self._run, choice, [feeds], self._output_names)
            # The clock of this thread does not count what other processes do.
            seconds.append(quickest(run, time.thread_time))
        best = min(seconds)
        return 0 if seconds[0] < MUCH_FASTER * best else seconds.index(best)

    def use_graph(self, number: int) -> None:
        """Use one graph for any number of rows and steps, but for the steps of a bucket.

        Args:
            number: of the graph, among those for any number of steps, the fastest example first.
        """
        if self._graphs.dynamic:
            self._graphs.assign(1, self._graphs.dynamic[number])

    def _warm_up_graphs(self, row_counts: Sequence[int]) -> RunnerSeconds:
        """Return what runs of `MEASURED_STEPS` take in each dynamic graph, with all cores."""
        seconds: RunnerSeconds = {}
        for runner in self._graphs.dynamic:
            steps = self._steps_within(runner, MEASURED_STEPS)
            seconds[runner] = self._measure(runner, steps, row_counts)
        # The fastest graph for one row is often not the fastest for sixteen.
        for rows in row_counts:
            if seconds:
                fastest = min(seconds, key=lambda runner: seconds[runner][rows])
                self._graphs.assign(rows, fastest)
        dynamic = self._graphs.one_row
        for steps, runner in self._graphs.buckets.items():
            tuned = self._tune(runner, steps, row_counts)
            # Without a choice one row is enough: a captured graph would be captured for every number of rows.
            rows = row_counts[0]
            bucket_seconds = tuned[rows] if tuned else self._time(runner, steps, rows)
            if dynamic is not None and self.padding_is_harmless():
                dynamic_seconds = self._time(dynamic, self._steps_within(dynamic, steps), rows)
                self._graphs.prefer(steps, bucket_seconds, dynamic_seconds)
        return seconds

    def _measure_run_times(self, row_counts: Sequence[int], known: RunnerSeconds) -> None:
        """Measure runs as they are made side by side, and which dynamic graph is the fastest then.

        Args:
            known: what is known already of runs of `MEASURED_STEPS`.
        """
        one_core = self.cores > 1
        measured: dict[int, dict[int, float]] = {}  # steps -> rows -> seconds
        for graph_steps in (FEW_STEPS, MEASURED_STEPS):
            for rows in row_counts if self._graphs.dynamic else ():
                seconds = {}
                for runner in self._graphs.dynamic:
                    if graph_steps == MEASURED_STEPS and runner in known:
                        seconds[runner] = known[runner][rows]
                        continue
                    steps = self._steps_within(runner, graph_steps)
                    seconds[runner] = self._time(runner, steps, rows, one_core)
                fastest = min(seconds, key=seconds.__getitem__)
                # The last word has the larger number of steps.
                self._graphs.assign(rows, fastest, one_core=True)
                measured.setdefault(graph_steps, {})[rows] = seconds[fastest]
        if not self._graphs.dynamic:
            for steps, runner in self._graphs.buckets.items():
                measured[steps] = {
                    rows: self._time(runner, steps, rows, one_core) for rows in row_counts
                }
        self.run_times = RunTimes(measured)

    @property
    def most_rows(self) -> int | None:
        """How many rows every graph takes; None for any number."""
        return _smallest_most(self._graphs.ranges_of(self.signature.batch_axis))

    @property
    def most_steps(self) -> int | None:
        """How many steps the graphs for any number of steps take; None for any number."""
        limits = []
        for runner in self._graphs.dynamic:
            limits += [self._graphs.range_in(runner, axis) for axis in self.signature.time_axes]
        return _smallest_most(limits)

    def _sizes(self, batch: Sequence[Feeds | Shapes]) -> dict[str, set[int]]:
        """Return the sizes for which a graph has to be right, of the axes that have ranges."""
        if self._graphs.take_all_sizes:
            return {}
        sizes = {axis: {size} for axis, size in batch[0].other_sizes}
        if self.signature.batch_axis is not None:
            # The model sees the rows of the run.
            sizes[self.signature.batch_axis] = {sum(feeds.rows for feeds in batch)}
        for axis in self.signature.time_axes:
            # Padding must not take a request to where the model computes something else.
            steps = {feeds.steps for feeds in batch if feeds.steps is not None}
            sizes[axis] = sizes.get(axis, set()) | steps
        return sizes

    def _step_ranges(self, steps: int | None) -> tuple[bool, ...]:
        """Return which of the ranges of the time axis have these steps."""
        ranges = [
            limits for axis in self.signature.time_axes for limits in self._graphs.ranges_of(axis)
        ]
        return tuple(steps is not None and limits.takes(steps) for limits in ranges)

    def _place(self, axis: str) -> str:
        """Where an axis is in the inputs of clients, such as "axis 1 of `x`, T,"."""
        for spec in self.signature.client_inputs:
            if axis in spec.shape:
                return f"axis {spec.shape.index(axis)} of `{spec.name}`, {axis},"
        return axis

    def _takes_rows(self, runner: Runner, rows: int) -> bool:
        return self._graphs.range_in(runner, self.signature.batch_axis).takes(rows)

    def _run(
        self,
        choice: GraphChoice,
        batch: Batch,
        outputs: Sequence[str],
        one_core: bool = False,
    ) -> list[Outputs]:
        feeds = collate(batch, self.signature, choice.steps)
        arrays = choice.runner.run(feeds, outputs, one_core=one_core)
        results = dict(zip(outputs, arrays, strict=True))
        return split(results, batch, self.signature, choice.steps)

    def _with_spare_rows(self, batch: Batch) -> Batch:
        """Add rows until their number is a power of 2, so that few captured graphs serve all: copies of the first."""
        rows = sum(feeds.rows for feeds in batch)
        power_of_two = 1 << (rows - 1).bit_length()
        if rows == power_of_two or not self.rows_are_independent():
            return batch
        first_row = {name: array[:1] for name, array in batch[0].arrays.items()}
        spare = replace(batch[0], arrays=first_row, rows=1)
        return [*batch, *[spare] * (power_of_two - rows)]

    def _trials(self) -> TrialResults:
        """Return the results of the trials, which run in the first call; other threads wait for it."""
        if self._trial_results is None:
            with self._trial_lock:
                if self._trial_results is None:
                    self._trial_results = self._try_batching()
        return self._trial_results

    def _try_batching(self) -> TrialResults:
        def run(batch: Batch, steps: int) -> list[Outputs]:
            # Neither padded nor with spare rows: that these are harmless is what the trials have to show.
            choice = self._graphs.pick(steps, may_pad=lambda: False)
            return self._run(choice, batch, self._output_names)

        short, long = TRIAL_STEPS
        if not self.takes_any_steps:
            short = min(self._graphs.buckets)
            long = max(self._graphs.buckets)
        for runner in self._graphs.dynamic:
            short = self._steps_within(runner, short)
            long = self._steps_within(runner, short + TRIAL_STEPS[1] - TRIAL_STEPS[0])
        # The trials are on one row and on two.
        if not all(limits.takes(1) for limits in self._graphs.ranges_of(self.signature.batch_axis)):
            return TrialResults(rows_are_independent=False, padding_is_harmless=False)
        return try_batching(run, self.signature, short, long)

    def _row_counts_in_range(self, row_counts: Sequence[int]) -> list[int]:
        """Return those that every graph takes; if there is none, the fewest that it takes."""
        ranges = self._graphs.ranges_of(self.signature.batch_axis)
        kept = [rows for rows in row_counts if all(limits.takes(rows) for limits in ranges)]
        return kept or [max(limits.least for limits in ranges)]

    def _steps_within(self, runner: Runner, steps: int) -> int:
        """Return the steps, or the next ones that the graph takes."""
        for axis in self.signature.time_axes:
            steps = self._graphs.range_in(runner, axis).nearest(steps)
        return steps

    def _measure(
        self,
        runner: Runner,
        steps: int,
        row_counts: Sequence[int],
    ) -> dict[int, float]:
        """Return rows -> seconds of one run, in the fastest way that the runner has."""
        tuned = self._tune(runner, steps, row_counts)
        if tuned:
            return tuned
        return {rows: self._time(runner, steps, rows) for rows in row_counts}

    def _tune(
        self,
        runner: Runner,
        steps: int,
        row_counts: Sequence[int],
    ) -> dict[int, float]:
        def graph_inputs(rows: int) -> Arrays:
            feeds = example(self.signature, rows, steps)
            return collate([feeds], self.signature, feeds.steps)

        batch_axes = {}
        # Parts whose longest rows differ would give outputs of different size; and a part may be fewer rows than the
        # graph takes.
        can_be_divided = not self.signature.trimmed_axes and self._takes_rows(runner, 1)
        if self.rows_are_independent() and can_be_divided:
            for tensor in self.signature.tensors:
                if tensor.batch is not None:
                    batch_axes[tensor.name] = tensor.batch
        return runner.tune(graph_inputs, self._output_names, batch_axes, row_counts)

    def _time(self, runner: Runner, steps: int, rows: int, one_core: bool = False) -> float:
        """Return the seconds of one run, collating and splitting included.

        On one core, a run is computed by the thread that asks for it: its processor time is what it takes when no other
        process holds it up.
        """
        feeds = example(self.signature, rows, steps)
        choice = GraphChoice(runner, feeds.steps)
        batch = [feeds]
        clock = time.thread_time if one_core and HAS_THREAD_TIME else time.perf_counter
        return quickest(lambda: self._run(choice, batch, self._output_names, one_core), clock)


def _shapes_key(inputs: Arrays) -> ShapesKey | None:
    """What tells the shapes of inputs; None for what is not a dict of arrays."""
    if not isinstance(inputs, dict):
        return None
    parts = []
    for name, array in inputs.items():
        if type(array) is not np.ndarray:
            return None
        parts.append((name, array.dtype, array.shape))
    return tuple(parts)


def _smallest_most(ranges: Sequence[SizeRange]) -> int | None:
    ends = [limits.most for limits in ranges if limits.most is not None]
    return min(ends, default=None)
