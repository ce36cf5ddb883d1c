"""What a file is run on: the example, random inputs of other sizes, and PyTorch's outputs for each of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.tolerance import ROUNDING_LIMIT, ROUNDING_MARGIN, Expected
from deploy_rnn.checking.trials import Reference, constant, draw, resized, size_assignments
from deploy_rnn.errors import ExportError
from deploy_rnn.tensor_spec import TensorSpec

from ..bare_layer import is_layer, state_names
from ..onnx_file import OnnxFile

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


@dataclass(frozen=True)
class ExampleInput:
    """An input of a file, and its tensor in the example call.

    Attributes:
        name: in the file.
        axes: in the file: a number for each fixed axis, a name for each dynamic one.
        tensor: the example.
        length_limit: of lengths of rows, the time axis or the number of steps that limits them; None for other inputs.
    """

    name: str
    axes: tuple[int | str, ...]
    tensor: Tensor
    length_limit: int | str | None

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Number of each dynamic axis -> its name."""
        return {number: axis for number, axis in enumerate(self.axes) if isinstance(axis, str)}

    def shape(self, sizes: Mapping[str, int]) -> list[int]:
        """Return the shape of the example with these sizes of the dynamic axes."""
        shape = list(self.tensor.shape)
        for number, name in self.dynamic_axes.items():
            shape[number] = sizes.get(name, shape[number])
        return shape

    def longest(self, sizes: Mapping[str, int]) -> int:
        """Return the largest length that lengths may hold, with these sizes of the dynamic axes."""
        assert self.length_limit is not None
        return self.length_limit if isinstance(self.length_limit, int) else sizes[self.length_limit]


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

    Raises:
        ExportError: the call does not fit the file's inputs.
    """

    def __init__(self, reference: Reference, call: ExampleCall, file: OnnxFile) -> None:
        self._reference = reference
        self._call = call
        self._file = file
        self._inputs = example_inputs(call, file)

    def cases(self, sizes: Sequence[int]) -> Iterator[Case]:
        """What the file is to be run on.

        1. The example itself.
        2. Random inputs, for every size of the dynamic axes.
        3. A bare layer that takes states: zeros, against PyTorch without them.
        4. A streaming file: a whole sequence in chunks.

        Raises:
            ExportError: the model does not fit the file's outputs, or fails on a size.
        """
        random = torch.Generator().manual_seed(0)
        # Case 1.
        yield self._case("example", self._call)
        for axis_sizes in size_assignments(self._file.dynamic_inputs, sizes):
            # Case 2.
            call, case = self._first_that_runs(axis_sizes, random)
            yield case
            # Case 3.
            if is_layer(self._reference.model) and call.arguments.get("hx") is not None:
                yield self._without_states(case.label, call)
        # Case 4.
        if self._file.states:
            yield from self._in_chunks(random)

    def long_case(self, steps: Mapping[str, int]) -> Case:
        """Random inputs of many steps, which show an error that grows with time.

        Args:
            steps: the size of each time axis; other axes are as in the example.

        Raises:
            ExportError: the model does not take that many, or they leave nothing to compare: a value that is not
                finite, or PyTorch's own float32 too far from float64.
        """
        label = _label("long", steps)
        call = self._drawn({**self.example_sizes, **steps}, torch.Generator().manual_seed(0))
        case = self._case(label, self._sorted(call))
        for spec, expected in zip(self._file.outputs, case.expected, strict=False):
            if not np.isfinite(expected.values).all():
                raise ExportError(f"`{spec.name}` has values that are not finite.")
            if ROUNDING_MARGIN * expected.rounding > ROUNDING_LIMIT:
                raise ExportError(
                    f"PyTorch's own `{spec.name}` is {expected.rounding:.1e} from float64."
                )
        return case

    @property
    def example_sizes(self) -> dict[str, int]:
        """The size of each dynamic axis in the example."""
        sizes = {}
        for input in self._inputs:
            for number, name in input.dynamic_axes.items():
                sizes[name] = input.tensor.size(number)
        return sizes

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

    def _first_that_runs(
        self, sizes: Mapping[str, int], random: torch.Generator
    ) -> tuple[ExampleCall, Case]:
        """A call with these sizes that the model takes. In this order:

        1. Random values, rows of any length in any order.
        2. The longest row first: the model may want them sorted.
        3. The example cut or repeated: its values may need an order, such as a mask's that is true before it is false.

        Raises:
            ExportError: the model takes none of them; why it refused the first.
        """
        drawn = self._drawn(sizes, random)
        calls = {
            "random": drawn,
            "random, sorted": self._sorted(drawn),
            "example resized": self._resized(sizes),
        }
        errors: list[ExportError] = []
        for name, call in calls.items():
            try:
                return call, self._case(_label(name, sizes), call)
            except ExportError as error:
                errors.append(error)
        raise errors[0]

    def _without_states(self, label: str, call: ExampleCall) -> Case:
        """The file gets zeros as states, PyTorch none."""
        zeros = pytree.tree_map(torch.zeros_like, call.arguments["hx"])
        names = [f"{name}0" for name in state_names(self._reference.model)]
        label = f"{label}, without {' and '.join(names)}"
        return self._case(label, call.with_argument("hx", zeros), call.with_argument("hx", None))

    def _in_chunks(self, random: torch.Generator) -> Iterator[InChunks]:
        """Random chunks; if the file fixes the steps, chunks of that size."""
        sizes = [self._file.input(name).shape[axis] for name, axis in self._file.time.items()]
        fixed_sizes = [size for size in sizes if isinstance(size, int)]
        is_dynamic = len(fixed_sizes) < len(sizes)
        for _ in range(CHUNKINGS if is_dynamic else 1):
            chunks = (
                torch.randint(1, 6, (5,), generator=random).tolist()
                if is_dynamic
                else 3 * fixed_sizes[:1]
            )
            call = self._sequence(sum(chunks), random)
            case = self._case(f"a sequence in chunks of {', '.join(map(str, chunks))}", call)
            yield InChunks(case.label, case.feeds, case.expected, self._file, chunks)

    def _sequence(self, steps: int, random: torch.Generator) -> ExampleCall:
        """Random inputs of that many steps; a state that the model takes as an argument starts at zero."""
        tensors = []
        for input in self._inputs:
            if input.name in self._file.states:
                tensors.append(torch.zeros_like(input.tensor))
                continue
            shape = list(input.tensor.shape)
            if input.name in self._file.time:
                shape[self._file.time[input.name]] = steps
            tensors.append(draw(input.tensor, shape, random))
        return self._call.with_tensors(tensors)

    def _drawn(self, sizes: Mapping[str, int], random: torch.Generator) -> ExampleCall:
        """Random inputs with these sizes of the dynamic axes."""
        tensors = []
        for input in self._inputs:
            shape = input.shape(sizes)
            if input.length_limit is None:
                tensors.append(draw(input.tensor, shape, random))
            else:
                lengths = torch.randint(1, input.longest(sizes) + 1, shape, generator=random)
                tensors.append(lengths.to(input.tensor.dtype))
        return self._call.with_tensors(tensors)

    def _resized(self, sizes: Mapping[str, int]) -> ExampleCall:
        """The example with these sizes of the dynamic axes."""
        tensors = []
        for input in self._inputs:
            tensor = resized(input.tensor, input.shape(sizes))
            if input.length_limit is not None:
                tensor = tensor.clamp(max=input.longest(sizes))
            tensors.append(tensor)
        return self._call.with_tensors(tensors)

    def _sorted(self, call: ExampleCall) -> ExampleCall:
        """The same call with the longest row first."""
        tensors = []
        for input, tensor in zip(self._inputs, call.tensors, strict=True):
            if input.length_limit is not None:
                tensor = tensor.sort(descending=True)[0]
            tensors.append(tensor)
        return call.with_tensors(tensors)

    def _case(self, label: str, call: ExampleCall, torch_call: ExampleCall | None = None) -> Case:
        """`torch_call`: the call to PyTorch that should give the same as `call` gives in the file; None for `call`."""
        torch_call = torch_call or call
        try:
            outputs = self._reference.outputs(torch_call)
        except Exception as error:  # anything that the model's own code raises
            raise ExportError(
                f"the PyTorch model itself fails on {label}: {type(error).__name__}: {error}. "
                "If it cannot take that size, give the `sizes` that it can."
            ) from error
        expected = self._reference.expected(torch_call, outputs, label)
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
        feeds[spec.name] = _as_file_has_it(tensor.detach().numpy(), spec.dtype)
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
    parts = [name]
    for axis, size in sizes.items():
        parts.append(f"{axis}={size}")
    return ", ".join(parts)
