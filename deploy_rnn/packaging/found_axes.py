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


@dataclass(frozen=True)
class FoundAxes:
    """What may be dynamic in a call.

    Attributes:
        names: for each tensor, its axes and their names.
        fixed: "B" if there is a batch of recurrent layers, or of cells, that no axis of the inputs is or changes; "T"
            for steps.
    """

    names: list[dict[int, str]]
    fixed: tuple[str, ...] = ()


def found_axes(reference: Reference, call: ExampleCall) -> FoundAxes:
    """Find the axes that the model takes in other sizes than the example's:

    1. The batch of the recurrent layers and cells, "B", and their steps, "T". An axis, or several of the same size,
       become one longer; each layer that had this batch then has one row more. So for the steps; those of another
       size, such as those of a decoder, are "T1". An input that the model does not use, or passes on, has the axes of
       the others.
    2. Axes that the batch or the steps are computed from: steps that begin with one more, frames of a waveform, rows
       that are sentences of several documents.
    3. Further axes that the model takes longer and shorter, such as that of a memory, get the name of their tensor and
       their number: "memory_1". Not one of size 1: the model may broadcast it.
    """
    names: list[dict[int, str]] = [{} for _ in call.tensors]
    layers = [module for module in reference.model.modules() if is_recurrent(module)]
    with (
        PaddedSteps() as padded,
        layer_sizes(layers, padded) as calls,
        _cell_batches(reference.model) as cell_batches,
    ):
        runs = _Runs(reference, call, calls, cell_batches)
        example = runs.resized([])
        if example is None:
            return FoundAxes(names)
        unused_names = {meaning: _numbered(meaning) for meaning in (BATCH, STEPS)}
        missing = []
        for meaning in (BATCH, STEPS):
            for size in dict.fromkeys(example.layer_sizes[meaning]):
                places = [place for place in runs.places(names) if runs.size(place) == size]
                found = _places_of(meaning, size, places, example, runs)
                if found:
                    _name(names, found, next(unused_names[meaning]))
                else:
                    missing.append((meaning, size))
        # Case 2. A product of batch and steps grows with both, and the steps are known by their own sizes.
        fixed = []
        for meaning, size in sorted(missing, key=lambda one: one[0] == BATCH):
            found = _source_of(meaning, size, names, example, runs)
            if found:
                _name(names, found, next(unused_names[meaning]))
            # One row, or one step at a time, is how the model calls the layer.
            elif size > 1 and not _is_computed(meaning, size, names, example, runs):
                fixed.append(meaning)
        for places in _other_places(names, runs):
            _name(names, places, call.axis_name(*places[0]))
    return FoundAxes(names, tuple(dict.fromkeys(fixed)))


def _numbered(name: str) -> Iterator[str]:
    """A name, and then the same with the numbers from 1 on."""
    yield name
    for number in itertools.count(1):
        yield f"{name}{number}"


def _name(names: Sequence[dict[int, str]], places: Sequence[Place], name: str) -> None:
    for number, axis in places:
        names[number][axis] = name


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

    def size(self, place: Place) -> int:
        number, axis = place
        return self._call.tensors[number].size(axis)

    def places(self, names: Sequence[Mapping[int, str]]) -> list[Place]:
        """The axes that have no name yet."""
        return [
            (number, axis)
            for number, tensor in enumerate(self._call.tensors)
            for axis in range(tensor.dim())
            if axis not in names[number]
        ]

    def resized(self, places: Sequence[Place], by: int = 1) -> _Ran | None:
        """Run the example with these axes longer by so many; None if the model refuses.

        What is new is the example from its beginning again; or each is where it belongs in the order of the example,
        as rows from the longest to the shortest want it.
        """
        for resize in (resized, stretched):
            tensors = []
            for number, tensor in enumerate(self._call.tensors):
                sizes = enumerate(tensor.shape)
                shape = [size + by * ((number, axis) in places) for axis, size in sizes]
                tensors.append(resize(tensor, shape))
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
        longer = runs.resized(together)
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


def _source_of(
    meaning: str,
    size: int,
    names: Sequence[Mapping[int, str]],
    example: _Ran,
    runs: _Runs,
) -> list[Place]:
    """Axes without a name, of any one size, with which a batch or steps of this size grow; empty if there are none."""
    for places in _sets_of_one_size(runs.places(names), runs):
        if _grows(meaning, size, places, example, runs):
            return places
    return []


def _is_computed(
    meaning: str,
    size: int,
    names: Sequence[Mapping[int, str]],
    example: _Ran,
    runs: _Runs,
) -> bool:
    """Whether a batch or steps of this size grow with axes that have a name."""
    places_of: dict[str, list[Place]] = {}
    for number, tensor_names in enumerate(names):
        for axis, name in tensor_names.items():
            places_of.setdefault(name, []).append((number, axis))
    return any(_grows(meaning, size, places, example, runs) for places in places_of.values())


def _grows(meaning: str, size: int, places: Sequence[Place], example: _Ran, runs: _Runs) -> bool:
    """Whether each batch, or steps, of this size is larger where these axes are."""
    # One sample more may not make another frame.
    for by in (1, runs.size(places[0])):
        larger = runs.resized(places, by)
        if larger is None:
            continue
        pairs = zip(example.layer_sizes[meaning], larger.layer_sizes[meaning], strict=False)
        if all(now > before for before, now in pairs if before == size):
            return True
    return False


def _other_places(names: Sequence[Mapping[int, str]], runs: _Runs) -> Iterator[list[Place]]:
    """Axes without a name, or several of one size, that the model takes longer and shorter."""
    taken: set[Place] = set()
    for places in _sets_of_one_size(runs.places(names), runs):
        is_new = runs.size(places[0]) > 1 and not taken.intersection(places)
        if is_new and all(runs.resized(places, by) is not None for by in (1, -1)):
            taken.update(places)
            yield places


def _sets_of_one_size(places: Sequence[Place], runs: _Runs) -> Iterator[list[Place]]:
    for size in dict.fromkeys(runs.size(place) for place in places):
        yield from _sets([place for place in places if runs.size(place) == size])


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
        if place[0] in inputs or runs.resized([place]) is not None:
            continue
        longer = runs.resized([*tied, place])
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
        alone = runs.resized([(number, axis)])
        if alone is None or alone.layer_sizes != example.layer_sizes:
            continue
        reshaped = alone.reshaped(example)
        if alone.changed(example) == reshaped and not reshaped & grown:
            free.append((number, axis))
    return free
