"""`Graphs`: which of a bundle's graphs runs a request."""

from collections.abc import Callable, Sequence
from math import ceil

from deploy_rnn.bundle import Graph
from deploy_rnn.errors import InputError

from .session import Runner


class Graphs:
    """The graphs of any number of steps, and those of one number, the buckets.

    Attributes:
        dynamic: the former, the fastest first.
        any_steps: that of them which runs one row, the first unless `assign` says otherwise; None if there is none.
        buckets: the latter, by their steps in rising order.
    """

    def __init__(self, graphs: Sequence[Graph], open_graph: Callable[[Graph], Runner]) -> None:
        dynamic = sorted((graph for graph in graphs if graph.steps is None), key=lambda graph: graph.milliseconds)
        fixed = sorted((graph.steps, graph.file, graph) for graph in graphs if graph.steps is not None)
        self.dynamic = [open_graph(graph) for graph in dynamic]
        self._of_rows = {1: self.dynamic[0]} if dynamic else {}
        self.buckets = {steps: open_graph(graph) for steps, _, graph in fixed}
        self._from = {steps: steps for steps in self.buckets}

    @property
    def any_steps(self) -> Runner | None:
        return self._of_rows.get(1)

    def assign(self, rows: int, runner: Runner) -> None:
        """Let one of `dynamic` run so many rows and more, up to the next number that has been assigned."""
        self._of_rows[rows] = runner

    def prefer(self, bucket: int, seconds: float, seconds_any: float) -> None:
        """Let shorter requests be padded to a bucket where it is the faster way, by what one run of its steps takes.

        Args:
            seconds: in the bucket's graph.
            seconds_any: in the graph of any number of steps, whose time is taken to grow with them.
        """
        self._from[bucket] = max(1, ceil(bucket * min(1.0, seconds / seconds_any)))

    def pick(self, steps: int | None, *, may_pad: bool, rows: int = 1) -> tuple[Runner, int | None]:
        """A graph, and the number of steps that it is to be given.

        1. The bucket of exactly these steps.
        2. The next larger one, if rows may be padded and it is expected to be faster, or nothing else can run them.
        3. The graph of any number of steps.

        Raises:
            InputError: no graph takes so many.
        """
        any_steps = self._of_rows[max(each for each in self._of_rows if each <= rows)] if self._of_rows else None
        if steps is None:
            return self._of_no_steps(any_steps)
        if steps in self.buckets:
            return self.buckets[steps], steps
        larger = next((bucket for bucket in self.buckets if bucket > steps), None) if may_pad else None
        if larger is not None and (any_steps is None or steps >= self._from[larger]):
            return self.buckets[larger], larger
        if any_steps is None:
            rule = f"at most {max(self.buckets)}" if may_pad else f"exactly {' or '.join(map(str, self.buckets))}"
            raise InputError(f"the inputs have {steps} steps; the bundle's graphs take {rule}: export another bucket.")
        return any_steps, steps

    def _of_no_steps(self, any_steps: Runner | None) -> tuple[Runner, int | None]:
        """The model has no axis of steps that may vary, or several of different size."""
        if any_steps is not None:
            return any_steps, None
        if len(self.buckets) == 1:
            return next(iter(self.buckets.values())), None
        raise InputError("the inputs differ in their steps; the bundle's graphs take one number for all.")
