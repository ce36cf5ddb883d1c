"""What a file is run on: the example, random inputs of other sizes, and PyTorch's outputs for each of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils import _pytree as pytree

from deploy_rnn.checking.branches import LARGEST_END, Condition
from deploy_rnn.checking.draws import Draws, ExampleInput, axis_sizes
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.tolerance import (
    Expected,
    Tolerance,
    as_array,
)
from deploy_rnn.checking.trials import Reference, constant, size_assignments
from deploy_rnn.errors import ExportError
from deploy_rnn.tensor_spec import ANY_SIZE, Ranges, TensorSpec

from ..bare_layer import is_layer, state_names
from ..onnx_file import OnnxFile
from .size_search import RefusedError, SizeSearch, sizes_text

CHUNKINGS = 3
"""How many ways a streaming file's sequence is cut into chunks."""

WHOLE_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

Run = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]
"""A file that some runtime has opened: inputs by name -> outputs in the file's order."""


@dataclass(frozen=True)
class Case:
    """One set of inputs, and what PyTorch returns for it.

    Attributes:
        label: what it is called in the report, such as "random, B=3".
        feeds: the file's inputs, by name.
        expected: PyTorch's outputs; the file may have more, the states of a streaming file.
    """

    label: str
    feeds: dict[str, np.ndarray]
    expected: list[Expected]

    def outputs(self, run: Run) -> Sequence[np.ndarray]:
        """The file's outputs: at least one array for each of `expected`."""
        return run(self.feeds)


IN_CHUNKS = "a sequence in chunks of"
"""How the labels of cases in chunks begin."""


@dataclass(frozen=True)
class InChunks(Case):
    """A whole sequence that a streaming file gets chunk by chunk.

    Attributes:
        file: the streaming file; it says which inputs have a time axis, and which carry states.
        chunks: the number of steps of each chunk.
    """

    file: OnnxFile
    chunks: Sequence[int]

    def outputs(self, run: Run) -> Sequence[np.ndarray]:
        names = [spec.name for spec in self.file.outputs]
        feeds = dict(self.feeds)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        start = 0
        for steps in self.chunks:
            stop = start + steps
            for name, axis in self.file.time.items():
                feeds[name] = np.take(self.feeds[name], range(start, stop), axis)
            outputs = dict(zip(names, run(feeds), strict=True))
            for name, output in outputs.items():
                parts[name].append(output)
            # The next chunk starts from the states that this one returned.
            for state, output_name in self.file.states.items():
                feeds[state] = outputs[output_name]
            start = stop
        whole = []
        for name, expected in zip(names, self.expected, strict=False):
            whole.append(_join(parts[name], expected.values.shape))
        return whole


def _join(parts: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Concatenate along the axis that grows from chunk to chunk to give `shape`; the last part if none does."""
    if parts[0].ndim != len(shape):
        return parts[-1]
    for axis, size in enumerate(shape):
        total = sum(part.shape[axis] for part in parts)
        if total == size:
            return np.concatenate(parts, axis)
    return parts[-1]


def example_inputs(call: ExampleCall, file: OnnxFile) -> list[ExampleInput]:
    """Pair the file's inputs with the tensors of the call.

    A streaming file may have more inputs than the call has tensors: its states.

    Raises:
        ExportError: the call does not fit the file.
    """
    tensors = call.tensors
    only_in_file = {spec.name for spec in file.inputs[len(tensors) :]}
    if len(tensors) > len(file.inputs) or not only_in_file <= file.states.keys():
        names = ", ".join(spec.name for spec in file.inputs)
        raise ExportError(
            f"the file has {len(file.inputs)} inputs ({names}), the example has {len(tensors)} tensors "
            f"({', '.join(call.input_names)}); `input_names` has the file's name for each, None for one that it does "
            "not take."
        )
    inputs = []
    for spec, tensor in zip(file.inputs, tensors, strict=False):
        if len(spec.shape) != tensor.dim():
            raise ExportError(
                f"`{spec.name}` has {len(spec.shape)} axes in the file, its example has {tensor.dim()}."
            )
        for axis, (size, example_size) in enumerate(zip(spec.shape, tensor.shape, strict=True)):
            if isinstance(size, int) and size != example_size:
                raise ExportError(
                    f"axis {axis} of `{spec.name}` is {size} in the file, {example_size} in its example; give an "
                    "example that the file takes."
                )
        inputs.append(ExampleInput(spec.name, spec.shape, tensor, file.lengths.get(spec.name)))
    return inputs


class CaseMaker:
    """Makes the cases of a file: an example call has the values, the file has the names and the axes.

    Args:
        reference: the PyTorch model.
        call: the example call of it.
        file: what the file is.
        conditions: what the sizes fulfil in the graph of the file, if that is known.

    Attributes:
        branches: label of a case whose sizes do not fulfil a condition -> the condition.
        unchanged: a dynamic axis that ran at the size of the example only -> why.

    Raises:
        ExportError: the call does not fit the file's inputs.
    """

    def __init__(
        self,
        reference: Reference,
        call: ExampleCall,
        file: OnnxFile,
        conditions: Sequence[Condition] = (),
    ) -> None:
        self._reference = reference
        self._call = call
        self._file = file
        self._inputs = example_inputs(call, file)
        self._draws = Draws(call, self._inputs)
        # What the model refuses: the line that raises -> values and why; sizes -> why.
        self._refused_values: dict[str, str] = {}
        self._refused_sizes: Mapping[str, str] = {}
        self.unchanged: Mapping[str, str] = {}
        self.branches: dict[str, str] = {}
        self._conditions = [
            condition for condition in conditions if condition.names <= self.example_sizes.keys()
        ]

    def cases(self, sizes: Sequence[int]) -> Iterator[Case]:
        """What the file is to be run on.

        1. The example itself.
        2. Random inputs, for every size of the dynamic axes that the model takes and that is in the range of the file;
           at the ends of the ranges, and beyond other branches. Each axis has another size than in the example at least
           once, if the model takes one.
        3. A bare layer that takes states: zeros, against PyTorch without them.
        4. A streaming file: a whole sequence in chunks.

        Raises:
            ExportError: the model does not fit the file's outputs, or fails on the example.
        """
        random = torch.Generator().manual_seed(0)
        # Case 1.
        yield self._example()
        search = SizeSearch(self.example_sizes, lambda tried: self._case_at(tried, random))
        for assignment in size_assignments(self._file.dynamic_inputs, sizes):
            for call, case in search.at(assignment):
                # Case 2.
                yield case
                # Case 3.
                if is_layer(self._reference.model) and call.arguments.get("hx") is not None:
                    yield self._without_states(case.label, call)
        for tried in (*self._ends(), *self._beyond_branches()):
            for _, case in search.if_taken(tried):
                yield case
        for name in self.example_sizes:
            for _, case in search.at_another_size(name):
                yield case
        self._refused_sizes = search.refused
        self.unchanged = search.unchanged
        # Case 4.
        if self._file.states:
            yield from self._in_chunks(random)

    @property
    def untried(self) -> tuple[str, ...]:
        """What was left out of the check, and why."""
        notes = []
        for name, limits in self._file.ranges.items():
            notes.append(f"{name} other than {limits}: the file is for these sizes only")
            if limits.most is not None and limits.most > LARGEST_END:
                notes.append(
                    f"{name}={limits.most}, the end of its range: it is too large to be tried"
                )
        for refused, reason in self._refused_sizes.items():
            notes.append(f"the model refuses {refused}: {reason}")
        for values_and_reason in self._refused_values.values():
            notes.append(f"the model refuses some values, {values_and_reason}")
        return (*notes, *self.unchanged.values())

    def long_case(self, steps: Mapping[str, int], tolerance: Tolerance) -> Case:
        """Random inputs of many steps, which show an error that grows with time.

        Args:
            steps: the size of each time axis; other axes are as in the example.
            tolerance: that of the check; parts in half precision allow PyTorch more rounding.

        Raises:
            ExportError: the model does not take that many, or they leave nothing to compare: a value that is not
                finite, or PyTorch's own float32 too far from float64.
        """
        random = torch.Generator().manual_seed(0)
        drawn = self._draws.calls({**self.example_sizes, **steps}, random)
        try:
            _, case = self._first_taken((_label("long", steps), call) for _, call in drawn)
        except RefusedError as error:
            raise ExportError(f"the model refuses {sizes_text(steps)}: {error}") from error
        self._note_branch(case, steps)
        for spec, expected in zip(self._file.outputs, case.expected, strict=False):
            if not np.isfinite(expected.values).all():
                raise ExportError(f"`{spec.name}` has values that are not finite.")
            if expected.rounding > max(tolerance.limit / tolerance.margin, tolerance.default):
                raise ExportError(
                    f"PyTorch's own `{spec.name}` is {expected.rounding:.1e} from float64."
                )
        return case

    @property
    def ranges(self) -> Ranges:
        """The sizes of the dynamic axes that may not have every size."""
        return self._file.ranges

    @property
    def example_sizes(self) -> dict[str, int]:
        """The size of each dynamic axis in the example."""
        return axis_sizes(self._inputs)

    @property
    def unvaried(self) -> tuple[str, ...]:
        """The inputs that are checked with one value only: whole numbers or booleans, all equal in the example."""
        names = []
        for input in self._inputs:
            is_fixed_value = not input.tensor.is_floating_point() and constant(input.tensor)
            # Lengths are drawn from 1 to their limit, not from the example.
            if is_fixed_value and input.length_limit is None:
                names.append(input.name)
        return tuple(names)

    def _example(self) -> Case:
        try:
            return self._case("example", self._call)
        except RefusedError as error:
            raise ExportError(f"the model itself fails on the example: {error}") from error

    def _case_at(
        self, sizes: Mapping[str, int], random: torch.Generator
    ) -> tuple[ExampleCall, Case]:
        """A call with these sizes.

        Raises:
            RefusedError: one of them is out of its range; or see `_first_taken`.
        """
        for name, limits in self._file.ranges.items():
            if name in sizes and not limits.takes(sizes[name]):
                raise RefusedError(f"the file is for {name} of {limits}", name)
        drawn = self._draws.calls(sizes, random)
        call, case = self._first_taken((_label(name, sizes), call) for name, call in drawn)
        self._note_branch(case, sizes)
        return call, case

    def _note_branch(self, case: Case, sizes: Mapping[str, int]) -> None:
        for condition in self._conditions:
            if not condition.holds({**self.example_sizes, **sizes}):
                self.branches.setdefault(case.label, str(condition))

    def _ends(self) -> list[dict[str, int]]:
        """The ends of the ranges that are not too large to be tried, other axes being as in the example."""
        found = []
        for name, limits in self._file.ranges.items():
            for end in (limits.least, limits.most):
                if name in self.example_sizes and end is not None and end <= LARGEST_END:
                    found.append({**self.example_sizes, name: end})
        return found

    def _beyond_branches(self) -> list[dict[str, int]]:
        """Sizes beyond each branch that the model was traced along: they show whether both sides are equal."""
        found = []
        for condition in self._conditions:
            found += condition.broken(self.example_sizes, self._file.ranges)
        return found

    def _first_taken(self, calls: Iterable[tuple[str, ExampleCall]]) -> tuple[ExampleCall, Case]:
        """The first of some calls, with what each is called, that the model takes.

        Raises:
            RefusedError: it takes none of them; why it refused the first.
        """
        errors: list[tuple[str, RefusedError]] = []
        for label, call in calls:
            try:
                case = self._case(label, call)
            except RefusedError as error:
                errors.append((label, error))
                continue
            self._note_refused(errors)
            return call, case
        _, first_error = errors[0]
        raise first_error

    def _note_refused(self, errors: Iterable[tuple[str, RefusedError]]) -> None:
        """Note values that the model refuses at a size that it takes; once for each line that raises."""
        for label, error in errors:
            self._refused_values.setdefault(error.place, f"{label}: {error}")

    def _without_states(self, label: str, call: ExampleCall) -> Case:
        """The file gets zeros as states, PyTorch none."""
        zeros = pytree.tree_map(torch.zeros_like, call.arguments["hx"])
        names = [f"{name}0" for name in state_names(self._reference.model)]
        label = f"{label}, without {' and '.join(names)}"
        return self._case(label, call.with_argument("hx", zeros), call.with_argument("hx", None))

    def _in_chunks(self, random: torch.Generator) -> Iterator[InChunks]:
        """Random chunks; if the file fixes the steps, or the model refuses others, chunks of the example's steps.

        Raises:
            ExportError: the model does not take a whole sequence of such chunks.
        """
        name, axis = next(iter(self._file.time.items()))
        example = next(input for input in self._inputs if input.name == name)
        like_example = self._within_range(3 * [example.tensor.size(axis)])
        if isinstance(self._file.input(name).shape[axis], int):
            yield self._like_example(like_example, random)
            return
        for _ in range(CHUNKINGS):
            chunks = self._within_range(torch.randint(1, 6, (5,), generator=random).tolist())
            try:
                yield self._chunked(chunks, random)
            except RefusedError:
                yield self._like_example(like_example, random)
                return

    def _like_example(self, chunks: Sequence[int], random: torch.Generator) -> InChunks:
        try:
            return self._chunked(chunks, random)
        except RefusedError as error:
            names = " and ".join(f"`{name}`" for name in self._file.time)
            raise ExportError(
                f"the model takes no sequence of {sum(chunks)} steps of {names}, in chunks of {chunks[0]} each: "
                f"{str(error).rstrip('.')}. A streaming file gets as many steps of each input at a time, and what "
                "comes before and after them does not count: export without `streaming`, or export the recurrent part "
                "by itself."
            ) from error

    def _within_range(self, chunks: Sequence[int]) -> list[int]:
        """Chunks whose steps, and whose sum, are in the range of the time axis: the model sees that sum."""
        limits = ANY_SIZE
        for name, axis in self._file.time.items():
            size = self._file.input(name).shape[axis]
            limits = limits.within(self._file.ranges.get(str(size), ANY_SIZE))
        kept: list[int] = []
        for chunk in chunks:
            chunk = limits.nearest(chunk)
            if limits.most is None or sum(kept) + chunk <= limits.most:
                kept.append(chunk)
        return kept

    def _chunked(self, chunks: Sequence[int], random: torch.Generator) -> InChunks:
        label = f"{IN_CHUNKS} {', '.join(map(str, chunks))}"
        calls = ((label, call) for call in self._sequences(sum(chunks), random))
        _, case = self._first_taken(calls)
        return InChunks(case.label, case.feeds, case.expected, self._file, chunks)

    def _sequences(self, steps: int, random: torch.Generator) -> Iterator[ExampleCall]:
        """Inputs of that many steps; a state that the model takes as an argument starts at zero."""
        inputs = []
        for input in self._inputs:
            axes: list[int | str] = list(input.tensor.shape)
            if input.name in self._file.time:
                axes[self._file.time[input.name]] = "steps"
            inputs.append(replace(input, axes=tuple(axes)))
        for _, call in Draws(self._call, inputs).calls({"steps": steps}, random):
            tensors = call.tensors
            for number, input in enumerate(inputs):
                if input.name in self._file.states:
                    tensors[number] = torch.zeros_like(input.tensor)
            yield call.with_tensors(tensors)

    def _case(self, label: str, call: ExampleCall, torch_call: ExampleCall | None = None) -> Case:
        """The case of a call that the model takes.

        Args:
            label: what it is called.
            call: to the file.
            torch_call: to PyTorch, which should give the same; None for `call`.

        Raises:
            RefusedError: the model does not take the call, or gives nothing to compare.
            ExportError: the model does not fit the file's outputs.
        """
        torch_call = torch_call or call
        try:
            outputs = self._reference.outputs(torch_call)
        except Exception as error:  # anything that the model's own code raises
            raise RefusedError.of(error) from error
        try:
            expected = self._reference.expected(torch_call, outputs, label)
        except ExportError as error:
            raise RefusedError(str(error), "") from error
        only_in_file = {spec.name for spec in self._file.outputs[len(outputs) :]}
        if len(outputs) > len(self._file.outputs) or not only_in_file <= set(
            self._file.states.values()
        ):
            raise ExportError(
                f"the file has {len(self._file.outputs)} outputs, the model gives {len(outputs)} tensors."
            )
        return Case(label, example_feeds(self._file.inputs, call), expected)


def example_feeds(inputs: Sequence[TensorSpec], call: ExampleCall) -> dict[str, np.ndarray]:
    """Return the tensors of a call as a file with these inputs takes them.

    An input that the call lacks is a state of a streaming file: it gets zeros, as at the beginning of a stream.
    """
    feeds = {}
    sizes: dict[int | str, int] = {}
    for spec, tensor in zip(inputs, call.tensors, strict=False):
        feeds[spec.name] = _as_file_has_it(as_array(tensor), spec.dtype)
        sizes |= zip(spec.shape, tensor.shape, strict=True)
    for spec in inputs[len(feeds) :]:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
        feeds[spec.name] = np.zeros(shape, spec.dtype)
    return feeds


def _as_file_has_it(values: np.ndarray, dtype: str) -> np.ndarray:
    """Whole numbers in the file's own type, such as int32, if it holds them; anything else as it is."""
    if np.issubdtype(values.dtype, np.integer) and dtype in WHOLE_TYPES:
        converted = values.astype(dtype)
        if (converted == values).all():
            return converted
    return values


def _label(name: str, sizes: Mapping[str, int]) -> str:
    """The name of a case, such as "random, B=3"."""
    return f"{name}, {sizes_text(sizes)}" if sizes else name
