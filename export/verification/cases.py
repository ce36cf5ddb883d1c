"""What a file is run on: the example, random inputs of other sizes, and PyTorch's outputs for each of them."""

import itertools
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

    def run(self, run: Run) -> Sequence[np.ndarray]:
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

    def run(self, run: Run) -> Sequence[np.ndarray]:
        names = [spec.name for spec in self.file.outputs]
        feeds = dict(self.feeds)
        results: list[dict[str, np.ndarray]] = []
        bounds = [0, *itertools.accumulate(self.chunks)]
        for start, stop in itertools.pairwise(bounds):
            for name, axis in self.file.time.items():
                feeds[name] = np.take(self.feeds[name], range(start, stop), axis)
            result = dict(zip(names, run(feeds), strict=True))
            results.append(result)
            # The next chunk starts from the states that this one returned.
            feeds |= {name: result[output] for name, output in self.file.states.items()}
        pairs = zip(names, self.expected, strict=False)
        return [_join([result[name] for result in results], expected.values.shape) for name, expected in pairs]


def _join(parts: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Concatenate along the axis that grows from chunk to chunk to give `shape`; the last part if none does."""
    for axis, size in enumerate(shape):
        if parts[0].ndim == len(shape) and sum(part.shape[axis] for part in parts) == size:
            return np.concatenate(parts, axis)
    return parts[-1]


class CaseMaker:
    """Makes the cases of a file: an example call gives the values, the file gives the names and the axes.

    Args:
        reference: the PyTorch model.
        call: the example call of it.
        file: what the file is. A streaming file may have more inputs than the call has tensors: its states.

    Raises:
        ExportError: the call does not fit the file's inputs.
    """

    def __init__(self, reference: Reference, call: ExampleCall, file: OnnxFile) -> None:
        only_in_file = {spec.name for spec in file.inputs[len(call.tensors) :]}
        if len(call.tensors) > len(file.inputs) or not only_in_file <= file.states.keys():
            names = ", ".join(spec.name for spec in file.inputs)
            raise ExportError(
                f"the file has {len(file.inputs)} inputs ({names}), the example has {len(call.tensors)} tensors."
            )
        self._reference = reference
        self._call = call
        self._file = file
        self._inputs = list(zip(file.inputs, call.tensors, strict=False))

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
        model = self._reference.model
        takes_states = is_layer(model) and self._call.arguments.get("hx") is not None
        # Case 1.
        yield self._case("example", self._call)
        for axis_sizes in size_assignments(self._file.dynamic_inputs, sizes):
            # Case 2.
            call, case = self._first_that_runs(axis_sizes, random)
            yield case
            # Case 3.
            if takes_states:
                zeros = pytree.tree_map(torch.zeros_like, call.arguments["hx"])
                names = " and ".join(f"{name}0" for name in state_names(model))
                without_states = call.with_argument("hx", None)
                yield self._case(f"{case.label}, without {names}", call.with_argument("hx", zeros), without_states)
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
                raise ExportError(f"PyTorch's own `{spec.name}` is {expected.rounding:.1e} from float64.")
        return case

    @property
    def example_sizes(self) -> dict[str, int]:
        """The size of each dynamic axis in the example."""
        sizes = {}
        for spec, tensor in self._inputs:
            for axis, size in zip(spec.shape, tensor.shape, strict=True):
                if isinstance(axis, str):
                    sizes[axis] = size
        return sizes

    @property
    def unvaried(self) -> tuple[str, ...]:
        """The inputs that are checked with one value only: whole numbers or booleans, all equal in the example."""
        return tuple(
            spec.name
            for spec, tensor in self._inputs
            if not tensor.is_floating_point() and constant(tensor) and spec.name not in self._file.lengths
        )

    def _first_that_runs(self, sizes: Mapping[str, int], random: torch.Generator) -> tuple[ExampleCall, Case]:
        """A call with these sizes that the model takes. In this order:

        1. Random values, rows of any length in any order.
        2. The longest row first: the model may want them sorted.
        3. The example cut or repeated: its values may need an order, such as a mask's that is true before it is false.

        Raises:
            ExportError: the model takes none of them; why it refused the first.
        """
        drawn = self._drawn(sizes, random)
        calls = {"random": drawn, "random, sorted": self._sorted(drawn), "example resized": self._resized(sizes)}
        errors: list[ExportError] = []
        for name, call in calls.items():
            try:
                return call, self._case(_label(name, sizes), call)
            except ExportError as error:
                errors.append(error)
        raise errors[0]

    def _in_chunks(self, random: torch.Generator) -> Iterator[InChunks]:
        """Random chunks; if the file fixes the steps, chunks of that size."""
        example = {spec.name: tensor for spec, tensor in self._inputs}
        time = self._file.time
        steps = next(example[name].size(axis) for name, axis in time.items())
        is_dynamic = any(isinstance(self._file.input(name).shape[axis], str) for name, axis in time.items())
        for _ in range(CHUNKINGS if is_dynamic else 1):
            chunks = torch.randint(1, 6, (5,), generator=random).tolist() if is_dynamic else [steps] * 3
            call = self._sequence(sum(chunks), random)
            case = self._case(f"a sequence in chunks of {', '.join(map(str, chunks))}", call)
            yield InChunks(case.label, case.feeds, case.expected, self._file, chunks)

    def _sequence(self, steps: int, random: torch.Generator) -> ExampleCall:
        """Random inputs of that many steps; a state that the model takes as an argument starts at zero."""
        tensors = []
        for spec, tensor in self._inputs:
            if spec.name in self._file.states:
                tensors.append(torch.zeros_like(tensor))
            else:
                shape = list(tensor.shape)
                if spec.name in self._file.time:
                    shape[self._file.time[spec.name]] = steps
                tensors.append(draw(tensor, shape, random))
        return self._call.with_tensors(tensors)

    def _drawn(self, sizes: Mapping[str, int], random: torch.Generator) -> ExampleCall:
        """Random inputs with these sizes of the dynamic axes."""
        tensors = []
        for spec, tensor in self._inputs:
            shape = _sized(spec, tensor, sizes)
            if spec.name in self._file.lengths:
                longest = self._longest(spec.name, sizes)
                lengths = torch.randint(1, longest + 1, shape, generator=random)
                tensors.append(lengths.to(tensor.dtype))
            else:
                tensors.append(draw(tensor, shape, random))
        return self._call.with_tensors(tensors)

    def _resized(self, sizes: Mapping[str, int]) -> ExampleCall:
        """The example with these sizes of the dynamic axes."""
        tensors = []
        for spec, tensor in self._inputs:
            tensor = resized(tensor, _sized(spec, tensor, sizes))
            if spec.name in self._file.lengths:
                tensor = tensor.clamp(max=self._longest(spec.name, sizes))
            tensors.append(tensor)
        return self._call.with_tensors(tensors)

    def _longest(self, name: str, sizes: Mapping[str, int]) -> int:
        """The largest length that this input may hold: a fixed number of steps, or the size of the time axis."""
        limit = self._file.lengths[name]
        return limit if isinstance(limit, int) else sizes[limit]

    def _sorted(self, call: ExampleCall) -> ExampleCall:
        """The same call with the longest row first."""
        tensors = []
        for (spec, _), tensor in zip(self._inputs, call.tensors, strict=True):
            if spec.name in self._file.lengths:
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
        if len(outputs) > len(self._file.outputs) or not only_in_file <= set(self._file.states.values()):
            raise ExportError(
                f"the file has {len(self._file.outputs)} outputs, the model gives {len(outputs)} tensors."
            )
        return Case(label, example_feeds(self._file.inputs, call), expected)


def example_feeds(inputs: Sequence[TensorSpec], call: ExampleCall) -> dict[str, np.ndarray]:
    """The tensors of a call as a file with these inputs takes them.

    An input that the call lacks is a state of a streaming file: it gets zeros, as at the beginning of a stream.
    """
    feeds = {}
    sizes: dict[int | str, int] = {}
    for spec, tensor in zip(inputs, call.tensors, strict=False):
        feeds[spec.name] = tensor.detach().numpy()
        sizes |= zip(spec.shape, tensor.shape, strict=True)
    for spec in inputs[len(feeds) :]:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
        feeds[spec.name] = np.zeros(shape, spec.dtype)
    return feeds


def _label(name: str, sizes: Mapping[str, int]) -> str:
    return ", ".join([name, *(f"{axis}={size}" for axis, size in sizes.items())])


def _sized(spec: TensorSpec, example: Tensor, sizes: Mapping[str, int]) -> list[int]:
    """The shape of the example with these sizes of the dynamic axes."""
    return [sizes.get(str(axis), size) for axis, size in zip(spec.shape, example.shape, strict=True)]
