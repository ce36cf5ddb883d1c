"""`Engine`: one model in this process, its inputs checked before they reach onnxruntime."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from deploy_rnn.bundle import Graph, Manifest
from deploy_rnn.errors import InputError
from deploy_rnn.runtime import CPU, TensorSpec
from deploy_rnn.timing import quickest

from .collate import collate, split
from .cores import Cores
from .feeds import Feeds
from .graphs import Graphs
from .probe import example, padding_is_harmless, padding_is_not_read, rows_are_independent
from .providers import open_runner
from .session import Runner
from .signature import Signature

TRIED_ROWS, TRIED_STEPS = (1, 2, 4, 16), 64
"""Where `warm_up` measures. Several rows are another matter than one: onnxruntime's RNN operator takes them in turn, a
loop of products at once."""


class Engine:
    """A loaded model; `run` may be called from several threads at once.

    Of an .onnx file everything is in the graph's own layout. Of a bundle everything is batch-first, whatever the
    graphs do: (B, T, ...), states (B, ...). Its states and lengths may be left out: a state is then zeros, and every
    step of a row counts. A request is padded to a larger graph only if a trial has shown that the model does not mind.

    NaN and infinity are accepted, and passed on. What comes of them stays in their row, and is the graph's affair: the
    GRU and LSTM operators of onnxruntime make numbers of them.

    Args:
        path: an .onnx file, such as `deploy_rnn.export.export_onnx` writes, or the folder of a bundle.
        provider: the onnxruntime execution provider; there is no silent fallback.
        threads: cores that one run may use; None for all.

    Attributes:
        name: of the model: the bundle's, or the file's.
        inputs: name, dtype and shape of what the model takes; a dynamic axis has a name instead of a size.
        outputs: likewise, what it gives.
        contract: which of them are lengths and states, and which axes are rows and steps.
        rows_share: whether rows of several requests may share a run.
        pads: whether rows of fewer steps may.
        any_steps: whether there is a graph for any number of steps.

    Raises:
        FileNotFoundError: there is no such file.
        BundleError: the folder is no bundle, or is damaged, or of a later release.
        LoadError: the file is no model.
        ProviderError: the provider is missing or did not start.
        ValueError: `threads` below 1.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, path: str | Path, *, provider: str = CPU, threads: int | None = None) -> None:
        path = Path(path)
        opened = partial(open_runner, provider=provider, threads=threads)
        if path.is_dir():
            self.name, self.signature, self._graphs = _bundle(path, opened)
            self.inputs, self.outputs = self.signature.outer_inputs, self.signature.outer_outputs
        elif path.is_file():
            runner, self.name = opened(path), path.stem
            self.inputs, self.outputs = runner.specs()
            self.signature = Signature.of_specs(self.inputs, self.outputs)
            self._graphs = Graphs([Graph(path.name, "", None, 0, 0.0)], lambda graph: runner)
        else:
            raise FileNotFoundError(f"`path` (={str(path)!r}) is not a file.")
        self.any_steps = self._graphs.any_steps is not None
        self.rows_share, self.pads = self._tried()

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            inputs: one array for each input, of its dtype; sizes that share a name must be equal, and none may be 0.
            outputs: the names wanted; None for all.

        Raises:
            InputError: an input that is missing, unknown, or of the wrong dtype or shape; a length out of range; steps
                that no graph takes; an unknown output.
            RunError: onnxruntime failed.
        """
        feeds = self.feeds(inputs)
        return self.run_together([feeds], self.wanted(outputs))[0]

    def feeds(self, inputs: Mapping[str, np.ndarray]) -> Feeds:
        """The inputs, checked and completed, for `run_together`.

        Raises:
            InputError: as for `run`.
        """
        feeds = Feeds.of(inputs, self.signature)
        self.steps_of([feeds])
        return feeds

    def wanted(self, outputs: Sequence[str] | None) -> list[str]:
        """The names of the outputs wanted, checked; None for all."""
        known = [spec.name for spec in self.outputs]
        if outputs is not None and (isinstance(outputs, str) or not outputs):
            raise InputError(f"`outputs` (={outputs!r}) must be a list of names, or None for all ({', '.join(known)}).")
        wanted = known if outputs is None else list(outputs)
        if unknown := [name for name in wanted if name not in known]:
            raise InputError(f"there is no output `{unknown[0]}`; the outputs are {', '.join(known)}.")
        return wanted

    def joins(self, outputs: Sequence[str]) -> bool:
        """Whether chunks of a stream may run end to end, and these outputs be cut apart again."""
        tensors = self.signature.inputs
        moving = all(each.time is not None or each.name in self.signature.states for each in tensors)
        return moving and self.rows_share and self.signature.in_time.issuperset(outputs)

    def steps_of(self, batch: Sequence[Feeds]) -> int | None:
        """The steps that a run of these requests would have, padding included; None if the model has no such axis."""
        return self._graphs.pick(_longest(batch), may_pad=self.pads)[1]

    def run_together(self, batch: Sequence[Feeds], outputs: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """One run for several requests, which agree in `others`, and in their steps unless the engine pads.

        Returns:
            The outputs of each.
        """
        rows = sum(each.rows for each in batch)
        return self._run(batch, outputs, *self._graphs.pick(_longest(batch), may_pad=self.pads, rows=rows))

    def _run(
        self, batch: Sequence[Feeds], outputs: Sequence[str], runner: Runner, steps: int | None
    ) -> list[dict[str, np.ndarray]]:
        if runner.prefers_few_row_counts and self.rows_share:
            batch = [*batch, *self._spare(batch)]
        results = runner.run(collate(batch, self.signature, steps), outputs)
        return split(dict(zip(outputs, results, strict=True)), batch, self.signature, steps)

    def _spare(self, batch: Sequence[Feeds]) -> list[Feeds]:
        """Rows that make their number a power of 2, so that few captures serve all: copies of the first."""
        rows = sum(each.rows for each in batch)
        first = Feeds({name: array[:1] for name, array in batch[0].arrays.items()}, 1, batch[0].steps, batch[0].others)
        return [first] * ((1 << (rows - 1).bit_length()) - rows)

    def warm_up(self) -> None:
        """Run each graph, and measure what is the fastest: how to use the cores, whether to pad to a bucket from which
        length on, which graph of any number of steps for how many rows.
        """
        tried = TRIED_ROWS if self.rows_share else TRIED_ROWS[:1]
        taken = [(runner, self._measured(runner, TRIED_STEPS, tried)) for runner in self._graphs.dynamic]
        for rows in tried if taken else ():
            self._graphs.assign(rows, min(taken, key=lambda each: each[1][rows])[0])
        for steps, runner in self._graphs.buckets.items():
            seconds = self._measured(runner, steps, tried if isinstance(runner, Cores) else (1,))[1]
            if self.pads and self._graphs.any_steps is not None:
                self._graphs.prefer(steps, seconds, self._seconds(self._graphs.any_steps, steps))

    def _measured(self, runner: Runner, steps: int, tried: Sequence[int]) -> dict[int, float]:
        """Rows -> seconds of one run, with the cores used in the best way."""
        if not isinstance(runner, Cores):
            return {rows: self._seconds(runner, steps, rows) for rows in tried}
        tensors = (*self.signature.inputs, *self.signature.outputs)
        axes = {each.name: each.batch for each in tensors if each.batch is not None} if self.rows_share else {}

        def inputs(rows: int) -> dict[str, np.ndarray]:
            feeds = example(self.signature, rows, steps)
            return collate([feeds], self.signature, feeds.steps)

        return runner.tune(inputs, self.wanted(None), axes, tried)

    def _seconds(self, runner: Runner, steps: int, rows: int = 1) -> float:
        feeds, outputs = example(self.signature, rows, steps), self.wanted(None)
        return quickest(lambda: self._run([feeds], outputs, runner, feeds.steps))

    def _tried(self) -> tuple[bool, bool]:
        """`rows_share` and `pads`."""
        outputs, buckets = self.wanted(None), list(self._graphs.buckets)

        def run(batch: Sequence[Feeds], steps: int) -> list[dict[str, np.ndarray]]:
            return self._run(batch, outputs, *self._graphs.pick(steps, may_pad=False))

        self.rows_share = False  # a trial adds no rows
        short, long = (3, 7) if self._graphs.any_steps is not None else (buckets[0], buckets[-1])
        apart = rows_are_independent(run, self.signature, short)
        if short == long:
            return apart, apart and padding_is_not_read(run, self.signature, short)
        return apart, apart and padding_is_harmless(run, self.signature, short, long)


def _longest(batch: Sequence[Feeds]) -> int | None:
    steps = [each.steps for each in batch if each.steps is not None]
    return max(steps, default=None)


def _bundle(folder: Path, opened: partial[Runner]) -> tuple[str, Signature, Graphs]:
    manifest = Manifest.read(folder)
    manifest.check(folder)
    signature = Signature.of_manifest(manifest)
    graphs = Graphs(manifest.graphs, lambda graph: opened(folder / graph.file, fixed=graph.steps is not None))
    return manifest.name, signature, graphs
