"""The calls on which a converted model, in whatever file or compiled, is compared with PyTorch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deploy_rnn.checking.branches import Condition
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.tolerance import Expected, Tolerance, as_array, difference
from deploy_rnn.checking.trials import Reference, size_assignments
from deploy_rnn.errors import DynamicAxisError, ExportError, VerificationError
from deploy_rnn.model_errors import own_failure
from deploy_rnn.packaging.axes import Axis, DynamicCall
from deploy_rnn.tensor_spec import SizeRange

TRIED_ABOVE_LEAST = (0, 1, 3, 6, 31)
"""How far above the least size of a dynamic axis, which is 1 or 2, a package is tried.

A compiled loop takes four steps a turn, and then single ones (`loop_blocks`): some sizes are less than four, some are a
multiple of four, and some leave a rest.
"""

SMALL = (2, 3)
"""A model that takes none of these sizes has a least one that is larger, or takes multiples of a number."""


@dataclass(frozen=True)
class Trial:
    """One call, the sizes of its dynamic axes, and what PyTorch returns for it: values and dtype of each tensor."""

    label: str
    call: ExampleCall
    sizes: dict[Axis, int]
    expected: list[Expected]
    dtypes: list[torch.dtype]

    @property
    def sizes_by_name(self) -> dict[str, int]:
        return {axis.name: size for axis, size in self.sizes.items()}


def with_least_sizes(reference: Reference, example: DynamicCall) -> DynamicCall:
    """Let each axis begin at 1 if the model takes that, else at 2: torch.export does not tell the two apart.

    1. A squeeze that drops an axis of size 1 gives other outputs than those of the file, which keep their axes.
    2. A waveform may have to be of hundreds of samples: the axis begins where the model begins to take it.
    """
    random = torch.Generator().manual_seed(0)
    sizes = example.sizes
    ranges = {}
    ranks = [expected.values.ndim for expected in example_trial(reference, example).expected]
    for axis in sizes:
        taken = _first_taken(reference, example.calls(sizes | {axis: 1}, random))
        # Case 1.
        keeps_axes = taken is not None and _ranks(taken[1]) == ranks
        least = 1 if keeps_axes else 2
        if taken is None and axis.least <= 2:
            least = _least_size(reference, example, axis, random)  # case 2
        ranges[axis] = replace(axis, least=max(axis.least, least))
    return example.with_ranges(ranges)


def _least_size(
    reference: Reference, example: DynamicCall, axis: Axis, random: torch.Generator
) -> int:
    """The least size of an axis, of 2 or more, that the model takes, the other axes as in the example."""

    def takes(size: int) -> bool:
        calls = example.calls(example.sizes | {axis: size}, random)
        return _first_taken(reference, calls) is not None

    refused, taken = max(SMALL), example.sizes[axis]
    if taken <= refused or any(takes(size) for size in SMALL):
        return 2
    while taken - refused > 1:
        middle = (taken + refused) // 2
        if takes(middle):
            taken = middle
        else:
            refused = middle
    # Where the model takes multiples of a number, sizes that it takes are on both sides.
    return taken if takes(taken + 1) else 2


def _ranks(outputs: Sequence[Tensor]) -> list[int]:
    return [output.dim() for output in outputs]


def trials_of(reference: Reference, example: DynamicCall) -> Iterator[Trial]:
    """The example, and random inputs of other sizes. What the model itself refuses is left out.

    Raises:
        ExportError: the model refuses the example, or every other size of an axis.
    """
    example_sizes = example.sizes
    random = torch.Generator().manual_seed(0)
    yield example_trial(reference, example)
    varied = {axis for axis in example_sizes if axis.most <= 2}
    for additions in size_assignments(list(example_sizes), TRIED_ABOVE_LEAST):
        sizes = {
            axis: min(axis.least + addition, axis.most) for axis, addition in additions.items()
        }
        trial = random_trial(reference, example, sizes, random)
        if trial is None:
            continue
        yield trial
        # An axis of size 1 proves nothing: the model may broadcast it.
        varied |= {axis for axis, size in sizes.items() if size not in (1, example_sizes[axis])}
    for axis in [axis for axis in example_sizes if axis not in varied]:
        trial = _alone(reference, example, axis, random)
        if trial is not None:
            yield trial
            varied.add(axis)
    fixed_names = [axis.name for axis in example_sizes if axis not in varied]
    if fixed_names:
        name = fixed_names[0]
        reason = f"`{name}` cannot be dynamic: the model takes no other size than the example's"
        raise DynamicAxisError(
            f"{reason}; leave it out of `dynamic_shapes`, or give its range, such as Dim('{name}', min=2, max=9).",
            reason,
        )


def _alone(
    reference: Reference, example: DynamicCall, axis: Axis, random: torch.Generator
) -> Trial | None:
    """Another size of one axis, the others as in the example; None if the model takes none that is tried."""
    example_sizes = example.sizes
    size = example_sizes[axis]
    # A model may take multiples of a number only, such as 50, of which the example has one.
    for other_size in (size + 1, size + 2, 2 * size, 3 * size, size // 2):
        if other_size != 1 and axis.least <= other_size <= axis.most:
            sizes = example_sizes | {axis: other_size}
            trial = random_trial(reference, example, sizes, random)
            if trial is not None:
                return trial
    return None


def broken_sizes(
    condition: Condition, example: DynamicCall, trials: Sequence[Trial]
) -> list[dict[Axis, int]]:
    """Sizes, within the ranges of the axes, of which a condition is not true: those of trials, and at its ends."""
    axes = {axis.name: axis for axis in example.sizes}
    ranges = {name: SizeRange(axis.least, axis.most) for name, axis in axes.items()}
    example_sizes = {axis.name: size for axis, size in example.sizes.items()}
    tried = [trial.sizes_by_name for trial in trials if example.takes(trial.sizes)]
    broken = [sizes for sizes in tried if not condition.holds(sizes)]
    broken += condition.broken(example_sizes, ranges)
    return [{axes[name]: size for name, size in sizes.items()} for sizes in broken]


def example_trial(reference: Reference, example: DynamicCall) -> Trial:
    try:
        outputs = reference.outputs(example.call)
    except Exception as error:  # the model's own code can raise anything
        raise ExportError(own_failure(error)) from error
    if not outputs:
        raise ExportError("the model returns no tensor, so that there is nothing to compare.")
    expected = reference.expected(example.call, outputs, "the example")
    return Trial("the example", example.call, example.sizes, expected, _dtypes(outputs))


def _dtypes(tensors: Sequence[Tensor]) -> list[torch.dtype]:
    return [tensor.dtype for tensor in tensors]


def random_trial(
    reference: Reference,
    example: DynamicCall,
    sizes: Mapping[Axis, int],
    random: torch.Generator | None = None,
) -> Trial | None:
    """Random inputs of these sizes; None if the model refuses them."""
    random = random or torch.Generator().manual_seed(0)
    taken = _first_taken(reference, example.calls(sizes, random))
    if taken is None:
        return None
    call, outputs = taken
    size_labels = [f"{axis.name}={size}" for axis, size in sizes.items()]
    label = ", ".join(["random input", *size_labels])
    expected = reference.expected(call, outputs, label)
    return Trial(label, call, dict(sizes), expected, _dtypes(outputs))


def _first_taken(
    reference: Reference, calls: Iterable[ExampleCall]
) -> tuple[ExampleCall, list[Tensor]] | None:
    """The first call that the model takes, and its outputs; None if it takes none."""
    for call in calls:
        with suppress(Exception):  # the model's own code can raise anything
            outputs = reference.outputs(call)
            if outputs:
                return call, outputs
    return None


def largest_differences(
    function: Callable[..., Any],
    trials: Sequence[Trial],
    tolerance: Tolerance,
    file_name: str,
) -> tuple[float, ...]:
    """Run every trial twice: -> the largest difference of each output.

    TorchScript optimises after its first calls, and no call may depend on the one before.

    Raises:
        ExportError: the file cannot be run.
        VerificationError: an output differs from the model's.
    """
    largest = [0.0] * len(trials[0].expected)
    for trial in [*trials, *trials]:
        try:
            outputs = trial.call.run(function)
        except Exception as error:  # PyTorch raises many types here
            raise ExportError(f"{file_name} fails on {trial.label}: {error}") from error
        differences = _differences(trial, outputs, tolerance, file_name)
        largest = [max(pair) for pair in zip(largest, differences, strict=True)]
    return tuple(largest)


def _differences(
    trial: Trial, outputs: Sequence[Tensor], tolerance: Tolerance, file_name: str
) -> list[float]:
    """The largest difference of each output; raise VerificationError if one is not what PyTorch gives."""
    if len(outputs) != len(trial.expected):
        raise VerificationError(
            f"{file_name} is not the model: it gives {len(outputs)} tensors, PyTorch {len(trial.expected)}."
        )
    differences = []
    for number, output in enumerate(outputs):
        expected, dtype = trial.expected[number], trial.dtypes[number]
        where = f"{file_name} is not the model: output {number} on {trial.label}"
        differences.append(_largest_difference(expected, dtype, output, tolerance, where))
    return differences


def _largest_difference(
    expected: Expected, dtype: torch.dtype, output: Tensor, tolerance: Tolerance, where: str
) -> float:
    """Compare one output; raise VerificationError if it differs too much anywhere."""
    actual = as_array(output)
    if actual.shape != expected.values.shape or output.dtype is not dtype:
        names = [str(one).removeprefix("torch.") for one in (output.dtype, dtype)]
        raise VerificationError(
            f"{where} is {names[0]}{list(actual.shape)}, "
            f"PyTorch gives {names[1]}{list(expected.values.shape)}."
        )
    differences = difference(expected.values, actual)
    allowed = tolerance.allowed(expected)
    if (differences > allowed).any():
        worst = (differences - allowed).argmax()
        raise VerificationError(
            f"{where} differs by {differences.flat[worst]:.1e}, allowed is {allowed.flat[worst]:.1e} "
            "(`atol` and `rtol` change that)."
        )
    return float(differences.max(initial=0))
