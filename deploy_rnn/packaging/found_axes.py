"""The batch and the steps of a whole model: which axes of its inputs they are, found by running it at other sizes."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploy_rnn.checking.draws import stretched
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.layer_sizes import LayerSizes, PaddedSteps, layer_sizes
from deploy_rnn.checking.trials import Reference, resized
from deploy_rnn.nn.loops import in_step, noted_loops
from deploy_rnn.nn.recurrent import is_recurrent

BATCH = "B"
STEPS = "T"

Place = tuple[int, int]
"""The number of a tensor of the call, and an axis of it."""


def found_axes(reference: Reference, call: ExampleCall) -> list[dict[int, str]]:
    """For each tensor of the call: the axes that are the batch of the recurrent layers and cells, "B", or steps, "T".

    An axis, or several of the same size, become one longer. If each layer that had this batch then has one row more,
    they are "B"; and so for "T". Steps of another size, such as those of a decoder, are "T1". An input that the model
    does not use, or passes on, has the axes of the others.
    """
    names: list[dict[int, str]] = [{} for _ in call.tensors]
    layers = [module for module in reference.model.modules() if is_recurrent(module)]
    with (
        PaddedSteps() as padded,
        layer_sizes(layers, padded) as calls,
        _cell_batches(reference.model) as cell_batches,
    ):
        runs = _Runs(reference, call, calls, cell_batches)
        example = runs.longer([])
        if example is None:
            return names
        for meaning in (BATCH, STEPS):
            unused_names = (f"{meaning}{count or ''}" for count in itertools.count())
            for size in dict.fromkeys(example.layer_sizes[meaning]):
                places = [
                    (number, axis)
                    for number, axis in runs.places(size)
                    if axis not in names[number]
                ]
                found = _places_of(meaning, size, places, example, runs)
                name = next(unused_names) if found else ""
                for number, axis in found:
                    names[number][axis] = name
    return names


@contextmanager
def _cell_batches(model: nn.Module) -> Iterator[list[int]]:
    """A list that gets the batch of each call of a cell; the step of a loop calls it as often as the loop has steps."""
    batches: list[int] = []

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        input: Tensor = args[0] if args else kwargs["input"]
        if input.dim() == 2 and not in_step():
            batches.append(input.size(0))

    cells = [module for module in model.modules() if isinstance(module, nn.RNNCellBase)]
    hooks = [cell.register_forward_pre_hook(note, with_kwargs=True) for cell in cells]
    try:
        yield batches
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Ran:
    """One run of the model.

    Attributes:
        layer_sizes: "B" and "T" -> the batch, or the steps, of each call of a recurrent layer.
        outputs: what the model gave.
    """

    layer_sizes: Mapping[str, Sequence[int]]
    outputs: Sequence[Tensor]

    def reshaped(self, before: "_Ran") -> set[int]:
        """The numbers of the outputs that have another shape than in the run before."""
        pairs = enumerate(zip(before.outputs, self.outputs, strict=False))
        return {number for number, (then, now) in pairs if then.shape != now.shape}

    def changed(self, before: "_Ran") -> set[int]:
        """The numbers of the outputs that have another shape, or other values, than in the run before."""
        pairs = enumerate(zip(before.outputs, self.outputs, strict=False))
        return {number for number, (then, now) in pairs if not torch.equal(then, now)}


class _Runs:
    """Runs a model at other sizes.

    Args:
        reference, call: the model and its example.
        calls: the list of `layer_sizes` for the model's recurrent layers.
        cell_batches: that of `_cell_batches`.
    """

    def __init__(
        self,
        reference: Reference,
        call: ExampleCall,
        calls: list[LayerSizes],
        cell_batches: list[int],
    ) -> None:
        self._reference = reference
        self._call = call
        self._calls = calls
        self._cell_batches = cell_batches

    def places(self, size: int) -> list[Place]:
        """The axes of that size in the example."""
        return [
            (number, axis)
            for number, tensor in enumerate(self._call.tensors)
            for axis, axis_size in enumerate(tensor.shape)
            if axis_size == size
        ]

    def longer(self, places: Sequence[Place]) -> _Ran | None:
        """Run the example with these axes longer by one; None if the model refuses.

        What is new is the first element again; or each is where it belongs in the order of the example, as rows from
        the longest to the shortest want it.
        """
        for lengthened in (resized, stretched):
            tensors = []
            for number, tensor in enumerate(self._call.tensors):
                sizes = enumerate(tensor.shape)
                shape = [size + ((number, axis) in places) for axis, size in sizes]
                tensors.append(lengthened(tensor, shape))
            ran = self._run(self._call.with_tensors(tensors))
            if ran is not None or not places:
                return ran
        return None

    def _run(self, call: ExampleCall) -> _Ran | None:
        self._calls.clear()
        self._cell_batches.clear()
        try:
            with noted_loops() as loops:
                outputs = self._reference.outputs(call)
        except Exception:  # the model's own code can raise anything
            return None
        batches = [sizes.batch for sizes in self._calls if sizes.batch is not None]
        steps = [sizes.steps for sizes in self._calls]
        batches += self._cell_batches
        batches += [loop.batch for loop in loops if loop.batch is not None]
        steps += [loop.steps for loop in loops if loop.steps is not None]
        return _Ran({BATCH: batches, STEPS: steps}, outputs)


def _places_of(
    name: str, size: int, places: Sequence[Place], example: _Ran, runs: _Runs
) -> list[Place]:
    """Those of these axes, all of one size, that are the batch or the steps; empty if none are."""
    other = STEPS if name == BATCH else BATCH
    expected = {
        name: [count + (count == size) for count in example.layer_sizes[name]],
        other: example.layer_sizes[other],
    }
    for together in _sets(places):
        longer = runs.longer(together)
        if longer is not None and longer.layer_sizes == expected:
            tied = _with_tied_places(together, places, expected, runs)
            grown = longer.reshaped(example)
            return [*tied, *_free_places(tied, places, grown, example, runs)]
    return []


def _sets(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Axes that may have to grow together: each by itself, those of one number in all inputs, and all."""
    for place in places:
        yield [place]
    for number in sorted({axis for _, axis in places}):
        yield [place for place in places if place[1] == number]
    yield list(places)


def _with_tied_places(
    found: Sequence[Place],
    places: Sequence[Place],
    expected: Mapping[str, Sequence[int]],
    runs: _Runs,
) -> list[Place]:
    """These axes, and those that cannot become longer alone, but with them: of a mask whose sums are the lengths."""
    tied = [*found]
    inputs = {number for number, _ in found}
    for place in places:
        if place[0] in inputs or runs.longer([place]) is not None:
            continue
        longer = runs.longer([*tied, place])
        if longer is not None and longer.layer_sizes == expected:
            tied.append(place)
    return tied


def _free_places(
    found: Sequence[Place],
    places: Sequence[Place],
    grown: set[int],
    example: _Ran,
    runs: _Runs,
) -> list[Place]:
    """The further axes that change nothing, but perhaps the shape of an output of their own.

    A table with as many entries as there are rows by chance changes an output that the rows change too: `grown`.
    """
    inputs = {number for number, _ in found}
    axes = {axis for _, axis in found}
    free = []
    for number, axis in places:
        if number in inputs or axis not in axes:
            continue
        alone = runs.longer([(number, axis)])
        if alone is None or alone.layer_sizes != example.layer_sizes:
            continue
        reshaped = alone.reshaped(example)
        if alone.changed(example) == reshaped and not reshaped & grown:
            free.append((number, axis))
    return free
