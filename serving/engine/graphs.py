"""`Graphs`: which graph of a model runs a batch."""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import ceil
from typing import NamedTuple, Self

from deploy_rnn.bundle import Graph
from deploy_rnn.errors import BundleError, InputError
from deploy_rnn.tensor_spec import ANY_SIZE, Ranges, SizeRange

from .session import Runner

Sizes = Mapping[str, Collection[int]]
"""Dynamic axis -> the sizes of it for which a graph has to be right: that of the run, or those of each request."""

NO_SIZES: Sizes = {}


class GraphChoice(NamedTuple):
    """A graph, and the steps to give it, padding included; None if the model has no single time axis."""

    runner: Runner
    steps: int | None


class Graphs:
    """Dynamic graphs take any number of steps; a bucket is a graph for one number of steps.

    Args:
        dynamic: the fastest for one row first.
        buckets: steps -> the graph for them, in rising order.
        ranges: graph -> the sizes that it is right for; a graph that is left out takes any.
    """

    def __init__(
        self,
        dynamic: Sequence[Runner],
        buckets: Mapping[int, Runner],
        ranges: Mapping[Runner, Ranges] | None = None,
    ) -> None:
        self.dynamic = dynamic
        self.buckets = buckets
        self._ranges = {runner: found for runner, found in (ranges or {}).items() if found}
        # Whether a run has one core only -> rows from which on a dynamic graph is used -> the graph: the first for any
        # number, until `assign` says otherwise.
        first = {1: dynamic[0]} if dynamic else {}
        self._by_rows = {False: first, True: first}
        # Steps from which on a bucket is worth padding to: its own, until `prefer` says otherwise.
        self._pad_from = {steps: steps for steps in buckets}

    @classmethod
    def single(cls, runner: Runner, ranges: Ranges | None = None) -> Self:
        """One graph, for all that it takes."""
        return cls([runner], {}, {runner: ranges or {}})

    @classmethod
    def of_bundle(
        cls,
        graphs: Sequence[Graph],
        open_graph: Callable[[Graph], Runner],
    ) -> Self:
        """Open the graphs of a bundle.

        Raises:
            BundleError: there are none.
        """
        if not graphs:
            raise BundleError("a bundle must have a graph; its manifest names none.")
        dynamic = [graph for graph in graphs if graph.steps is None]
        dynamic.sort(key=lambda graph: graph.milliseconds)
        fixed = [(graph.steps, graph.file, graph) for graph in graphs if graph.steps is not None]
        fixed.sort()
        runners = {graph.file: open_graph(graph) for graph in graphs}
        return cls(
            dynamic=[runners[graph.file] for graph in dynamic],
            buckets={steps: runners[file] for steps, file, _ in fixed},
            ranges={runners[graph.file]: graph.ranges for graph in graphs},
        )

    @property
    def take_all_sizes(self) -> bool:
        """Whether every size of every axis has a graph, and is the same to all graphs."""
        return bool(self.dynamic) and not self._ranges

    def ranges_of(self, axis: str | None) -> list[SizeRange]:
        """The different ranges of an axis in the graphs; empty if every graph takes any size."""
        found = [self.range_in(runner, axis) for runner in self._ranges]
        return [sizes for sizes in dict.fromkeys(found) if sizes.is_limited]

    def range_in(self, runner: Runner, axis: str | None) -> SizeRange:
        """The range of an axis in a graph."""
        ranges = self._ranges.get(runner, {})
        return ranges.get(axis, ANY_SIZE) if axis is not None else ANY_SIZE

    @property
    def least_sizes(self) -> dict[str, int]:
        """Dynamic axis with a range -> a size that the graphs take."""
        sizes: dict[str, int] = {}
        for ranges in self._ranges.values():
            for axis, limits in ranges.items():
                sizes[axis] = max(sizes.get(axis, 1), limits.least)
        return sizes

    def takes(self, runner: Runner, sizes: Sizes) -> bool:
        """Whether a graph is right for these sizes."""
        return self._misfit(runner, sizes) is None

    @property
    def one_row(self) -> Runner | None:
        """The dynamic graph that runs one row on all cores; None if there is no dynamic graph."""
        return self._by_rows[False].get(1)

    def assign(self, rows: int, runner: Runner, *, one_core: bool = False) -> None:
        """Use a dynamic graph for this number of rows and more, up to the next number that is assigned."""
        # A new dict, since `pick` may be looking through the old one.
        self._by_rows[one_core] = {**self._by_rows[one_core], rows: runner}

    def prefer(self, bucket: int, seconds: float, dynamic_seconds: float) -> None:
        """Let shorter requests be padded to a bucket where that is faster, judged by one run with its steps.

        Args:
            bucket: its steps.
            seconds: of a run in the bucket's graph.
            dynamic_seconds: of a run in the dynamic graph, which are taken to grow with the steps.
        """
        share = min(1.0, seconds / dynamic_seconds)
        self._pad_from[bucket] = max(1, ceil(bucket * share))

    def pick(
        self,
        steps: int | None,
        *,
        may_pad: Callable[[], bool],
        rows: int = 1,
        one_core: bool = False,
        sizes: Sizes = NO_SIZES,
        place: Callable[[str], str] = str,
    ) -> GraphChoice:
        """Pick the graph for a batch, of those that are right for its sizes.

        1. The bucket of exactly these steps.
        2. The next larger bucket, if rows may be padded and it is expected to be faster, or nothing else can run them.
        3. The dynamic graph for this number of rows.

        Args:
            steps: of the longest request; None if the model has no single time axis.
            may_pad: whether rows may be padded; called only where that matters, since the answer may take trial runs.
            rows: of all requests.
            one_core: whether the run has one core, where another graph may be the fastest.
            sizes: for which the graph has to be right.
            place: where an axis is in the inputs, for the error.

        Raises:
            InputError: no graph takes these steps, or these sizes.
        """
        dynamic = self._dynamic_for(rows, sizes, one_core)
        buckets = [bucket for bucket in self.buckets if self.takes(self.buckets[bucket], sizes)]
        if dynamic is None and not buckets:
            self._refuse(steps, sizes, place)
        if steps is None:
            return self._pick_without_steps(dynamic)
        # Case 1.
        if steps in buckets:
            return GraphChoice(self.buckets[steps], steps)
        # Case 2.
        larger = next((bucket for bucket in buckets if bucket > steps), None)
        if larger is not None:
            is_preferred = dynamic is None or steps >= self._pad_from[larger]
            if is_preferred and may_pad():
                return GraphChoice(self.buckets[larger], larger)
        # Case 3.
        if dynamic is not None:
            return GraphChoice(dynamic, steps)
        at_most = f"at most {max(buckets)}"
        exactly = f"exactly {' or '.join(map(str, self.buckets))}"
        rule = at_most if may_pad() else exactly
        raise InputError(
            f"the inputs have {steps} steps; the bundle's graphs take {rule}: export another bucket."
        )

    def _dynamic_for(self, rows: int, sizes: Sizes, one_core: bool) -> Runner | None:
        by_rows = self._by_rows[one_core]
        if not by_rows:
            return None
        assigned_rows = max(row_count for row_count in by_rows if row_count <= rows)
        candidates = [by_rows[assigned_rows], *self.dynamic]
        return next((runner for runner in candidates if self.takes(runner, sizes)), None)

    def _misfit(self, runner: Runner, sizes: Sizes) -> tuple[str, int, SizeRange] | None:
        """The first size that a graph is not right for: axis, size and the range of the axis."""
        for axis, limits in self._ranges.get(runner, {}).items():
            for size in sizes.get(axis, ()):
                if not limits.takes(size):
                    return axis, size, limits
        return None

    def _refuse(self, steps: int | None, sizes: Sizes, place: Callable[[str], str]) -> None:
        """Raises: InputError: a size that a graph is not right for, of the graph that would else be picked."""
        runners = [*self.dynamic, *self.buckets.values()]
        if steps is not None and steps in self.buckets:
            runners = [self.buckets[steps], *runners]
        for runner in runners:
            misfit = self._misfit(runner, sizes)
            if misfit is not None:
                axis, size, limits = misfit
                raise InputError(
                    f"{place(axis)} has size {size}; the model takes {limits}: with others it computes something else, "
                    "which its graph does not have, or fails."
                )

    def _pick_without_steps(self, dynamic: Runner | None) -> GraphChoice:
        """Pick for a model that has no time axis that may vary, or has several of different size."""
        if dynamic is not None:
            return GraphChoice(dynamic, None)
        if len(self.buckets) == 1:
            (bucket,) = self.buckets.values()
            return GraphChoice(bucket, None)
        raise InputError(
            "the inputs differ in their steps; the bundle's graphs take one number for all."
        )
