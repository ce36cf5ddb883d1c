"""What a file is run on: the example, random inputs of other sizes, and what PyTorch makes of them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.tolerance import ROUNDING_LIMIT, ROUNDING_MARGIN, Expected
from deploy_rnn.checking.trials import Reference, constant, draw, resized, size_assignments
from deploy_rnn.errors import ExportError
from deploy_rnn.runtime import TensorSpec, specs

from ..bare_layer import is_layer, state_names
from .report import Report


@dataclass(frozen=True)
class Case:
    """One set of inputs, and what PyTorch makes of it."""

    label: str
    feeds: dict[str, np.ndarray]
    expected: list[Expected]

    def run(self, session: InferenceSession) -> list[np.ndarray]:
        """What the file makes of it: at least one array for each of `expected`."""
        return list(session.run(None, self.feeds))


@dataclass(frozen=True)
class InChunks(Case):
    """A whole sequence that a streaming file gets chunk by chunk.

    Attributes:
        chunks: the number of steps of each.
        time: input -> its axis of steps.
        states: input -> the output that it takes from the chunk before.
    """

    chunks: Sequence[int]
    time: Mapping[str, int]
    states: Mapping[str, str]

    def run(self, session: InferenceSession) -> list[np.ndarray]:
        names = [output.name for output in session.get_outputs()]
        feeds, parts = dict(self.feeds), []
        starts = [0, *itertools.accumulate(self.chunks)]
        for first, end in itertools.pairwise(starts):
            for name, axis in self.time.items():
                feeds[name] = np.take(self.feeds[name], range(first, end), axis)
            parts.append(dict(zip(names, session.run(None, feeds), strict=True)))
            feeds |= {name: parts[-1][last] for name, last in self.states.items()}
        return [
            _joined([part[name] for part in parts], expected.values.shape)
            for name, expected in zip(names, self.expected, strict=False)
        ]


def _joined(parts: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Along the axis that grows from chunk to chunk; the last one if none does."""
    for axis, size in enumerate(shape):
        if parts[0].ndim == len(shape) and sum(part.shape[axis] for part in parts) == size:
            return np.concatenate(parts, axis)
    return parts[-1]


def cases(model: nn.Module, call: ExampleCall, report: Report, sizes: Sequence[int]) -> Iterator[Case]:
    """What a file with the inputs and outputs of `report` is to be run on.

    1. The example itself.
    2. Random inputs, for every size of the dynamic axes.
    3. A bare layer that takes states: zeros, against PyTorch without them.
    4. A streaming file: a whole sequence in chunks.

    Raises:
        ExportError: the model does not fit the file, or fails on a size.
    """
    carried = [spec.name for spec in report.inputs[len(call.tensors) :]]
    if len(call.tensors) > len(report.inputs) or not set(carried) <= report.states.keys():
        raise ExportError(
            f"the file has {len(report.inputs)} inputs ({', '.join(spec.name for spec in report.inputs)}), "
            f"the example has {len(call.tensors)} tensors."
        )
    reference = Reference(model)
    start = call.arguments.get("hx") if is_layer(model) else None
    random = torch.Generator().manual_seed(0)
    # Case 1.
    yield _case(reference, report, "example", call, call)
    for at in size_assignments(_axes(report), sizes):
        # Case 2.
        drawn, case = _first_that_runs(reference, report, call, at, random)
        yield case
        # Case 3.
        if start is not None:
            zeros = pytree.tree_map(torch.zeros_like, drawn.arguments["hx"])
            without = " and ".join(f"{name}0" for name in state_names(model))
            fed, asked = drawn.with_argument("hx", zeros), drawn.with_argument("hx", None)
            yield _case(reference, report, f"{case.label}, without {without}", fed, asked)
    # Case 4.
    if report.states:
        yield from _in_chunks(reference, report, call, random)


def _first_that_runs(
    reference: Reference, report: Report, call: ExampleCall, at: dict[str, int], random: torch.Generator
) -> tuple[ExampleCall, Case]:
    """1. Random values, rows of any length in any order.
    2. The longest row first: the model may want them sorted.
    3. The example cut or repeated: its values may need an order, such as a mask's that is true before it is false.

    Raises:
        ExportError: the model takes none of them; what it said of the first.
    """
    drawn = _drawn(call, report, at, random)
    tried = {"random": drawn, "random, sorted": _sorted(drawn, report), "example resized": _resized(call, report, at)}
    errors: list[ExportError] = []
    for kind, each in tried.items():
        label = ", ".join([kind, *(f"{axis}={size}" for axis, size in at.items())])
        try:
            return each, _case(reference, report, label, each, each)
        except ExportError as error:
            errors.append(error)
    raise errors[0]


def _in_chunks(reference: Reference, report: Report, call: ExampleCall, random: torch.Generator) -> Iterator[InChunks]:
    """Three random chunkings; if the file fixes the steps, three chunks of as many."""
    given = dict(zip((spec.name for spec in report.inputs), call.tensors, strict=False))
    dynamic = any(isinstance(report.input(name).shape[axis], str) for name, axis in report.time.items())
    steps = next(given[name].size(axis) for name, axis in report.time.items())
    for _ in range(3 if dynamic else 1):
        chunks = [int(size) for size in torch.randint(1, 6, (5,), generator=random)] if dynamic else [steps] * 3
        shapes = [
            [sum(chunks) if axis == report.time.get(name) else size for axis, size in enumerate(tensor.shape)]
            for name, tensor in given.items()
        ]
        # A state that the model takes as an argument starts at zero.
        tensors = [
            torch.zeros_like(tensor) if name in report.states else draw(tensor, shape, random)
            for (name, tensor), shape in zip(given.items(), shapes, strict=True)
        ]
        whole = call.with_tensors(tensors)
        case = _case(reference, report, f"a sequence in chunks of {', '.join(map(str, chunks))}", whole, whole)
        yield InChunks(case.label, case.feeds, case.expected, chunks, report.time, report.states)


def long_case(model: nn.Module, call: ExampleCall, report: Report, at: dict[str, int]) -> Case:
    """Random inputs of many steps: what is not seen in a few may be seen in these. Other axes are as in the example.

    Raises:
        ExportError: the model does not take that many, or they leave nothing to compare: a value that is not finite,
            or PyTorch's own float32 too far from float64.
    """
    label = ", ".join(["long", *(f"{axis}={size}" for axis, size in at.items())])
    drawn = _drawn(call, report, {**example_sizes(call, report), **at}, torch.Generator().manual_seed(0))
    drawn = _sorted(drawn, report)
    case = _case(Reference(model), report, label, drawn, drawn)
    for spec, expected in zip(report.outputs, case.expected, strict=False):
        if not np.isfinite(expected.values).all():
            raise ExportError(f"`{spec.name}` has values that are not finite.")
        if ROUNDING_MARGIN * expected.rounding > ROUNDING_LIMIT:
            raise ExportError(f"PyTorch's own `{spec.name}` is {expected.rounding:.1e} from float64.")
    return case


def _drawn(call: ExampleCall, report: Report, at: dict[str, int], random: torch.Generator) -> ExampleCall:
    """Random inputs with these sizes of the dynamic axes."""
    tensors = []
    for tensor, spec in zip(call.tensors, report.inputs, strict=False):
        shape = _sized(spec, tensor, at)
        if spec.name in report.lengths:
            limit = report.lengths[spec.name]
            steps = limit if isinstance(limit, int) else at[limit]
            tensors.append(torch.randint(1, steps + 1, shape, generator=random).to(tensor.dtype))
        else:
            tensors.append(draw(tensor, shape, random))
    return call.with_tensors(tensors)


def _resized(call: ExampleCall, report: Report, at: dict[str, int]) -> ExampleCall:
    """The example with these sizes of the dynamic axes."""
    tensors = []
    for tensor, spec in zip(call.tensors, report.inputs, strict=False):
        tensor = resized(tensor, _sized(spec, tensor, at))
        if spec.name in report.lengths:
            limit = report.lengths[spec.name]
            tensor = tensor.clamp(max=limit if isinstance(limit, int) else at[limit])
        tensors.append(tensor)
    return call.with_tensors(tensors)


def _sorted(call: ExampleCall, report: Report) -> ExampleCall:
    """Longest row first."""
    pairs = zip(call.tensors, report.inputs, strict=False)
    return call.with_tensors(
        [tensor.sort(descending=True)[0] if spec.name in report.lengths else tensor for tensor, spec in pairs]
    )


def _case(reference: Reference, report: Report, label: str, fed: ExampleCall, asked: ExampleCall) -> Case:
    """`fed` are the graph's inputs, `asked` is the call to PyTorch that should give the same."""
    try:
        outputs = reference.outputs(asked)
    except Exception as error:  # whatever the model's own code raises
        raise ExportError(
            f"the PyTorch model itself fails on {label}: {type(error).__name__}: {error}. "
            "If it cannot take that size, give the `sizes` that it can."
        ) from error
    expected = reference.expected(asked, outputs, label)
    more = {spec.name for spec in report.outputs[len(outputs) :]}
    if len(outputs) > len(report.outputs) or not more <= set(report.states.values()):
        raise ExportError(f"the file has {len(report.outputs)} outputs, the model gives {len(outputs)} tensors.")
    feeds = {spec.name: tensor.detach().numpy() for spec, tensor in zip(report.inputs, fed.tensors, strict=False)}
    return Case(label, with_zero_states(feeds, report.inputs), expected)


def example_feeds(session: InferenceSession, call: ExampleCall) -> dict[str, np.ndarray]:
    """The example, as a file takes it."""
    inputs = specs(session)[0]
    given = {spec.name: tensor.detach().numpy() for spec, tensor in zip(inputs, call.tensors, strict=False)}
    return with_zero_states(given, inputs)


def with_zero_states(feeds: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """`feeds`, with zeros for those of `inputs` that it lacks: the states of a streaming file, at the beginning."""
    sizes = {
        axis: size
        for spec in inputs
        if spec.name in feeds
        for axis, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }
    missing = [spec for spec in inputs if spec.name not in feeds]
    zeros = {spec.name: np.zeros([sizes.get(str(axis), axis) for axis in spec.shape], spec.dtype) for spec in missing}
    return {**feeds, **zeros}


def _axes(report: Report) -> list[str]:
    """The dynamic ones."""
    return list(dict.fromkeys(size for spec in report.inputs for size in spec.shape if isinstance(size, str)))


def example_sizes(call: ExampleCall, report: Report) -> dict[str, int]:
    """What each dynamic axis is in the example; states that the file alone takes come last, and are not in it."""
    pairs = zip(report.inputs, call.tensors, strict=False)
    sizes = [each for spec, tensor in pairs for each in zip(spec.shape, tensor.shape, strict=True)]
    return {axis: size for axis, size in sizes if isinstance(axis, str)}


def _sized(spec: TensorSpec, example: Tensor, at: dict[str, int]) -> list[int]:
    return [at.get(str(size), now) for size, now in zip(spec.shape, example.shape, strict=True)]


def unvaried(call: ExampleCall, report: Report) -> tuple[str, ...]:
    """The inputs that are checked with one value only: whole numbers or booleans, the same all over the example."""
    return tuple(
        spec.name
        for spec, tensor in zip(report.inputs, call.tensors, strict=False)
        if not tensor.is_floating_point() and constant(tensor) and spec.name not in report.lengths
    )
