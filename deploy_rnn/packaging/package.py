"""`package`: write a model to one file that runs without its Python source, once the file is checked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall, on_cpu
from deploy_rnn.checking.tolerance import Expected, Tolerance, difference, model_precision
from deploy_rnn.checking.trials import Reference, size_assignments
from deploy_rnn.checking.two_calls import check_module, check_two_calls
from deploy_rnn.conversion import convert_for_inference
from deploy_rnn.errors import DynamicAxisError, ExportError, VerificationError
from deploy_rnn.files import replace_file, target
from deploy_rnn.packaging import aot, torchscript
from deploy_rnn.packaging.axes import Axis, DynamicCall

TRIED_ABOVE_LEAST = (0, 1, 2, 6, 32)
"""How far above the least size of a dynamic axis a package is tried."""


@dataclass(frozen=True)
class Package:
    """What was written, and how it was checked.

    Attributes:
        path: the file.
        bytes: its size.
        inputs: name -> shape: a number for each axis that was checked at the example's size only, a name such as "B"
            for each dynamic one. A .pt2 file refuses other sizes.
        differences: for each output, the largest absolute difference from the model over everything that was run.

    `print(...)` shows all of them.
    """

    path: str
    bytes: int
    inputs: dict[str, tuple[int | str, ...]]
    differences: tuple[float, ...]

    def __str__(self) -> str:
        inputs = []
        for name, shape in self.inputs.items():
            sizes = ", ".join(str(size) for size in shape)
            inputs.append(f"{name} [{sizes}]")
        largest = max(self.differences, default=0.0)
        return f"{self.path}: {self.bytes / 1e3:,.0f} kB; {', '.join(inputs)}; largest difference {largest:.0e}"


@dataclass(frozen=True)
class Trial:
    """One call, the sizes of its dynamic axes, and what PyTorch returns for it."""

    label: str
    call: ExampleCall
    sizes: dict[Axis, int]
    expected: list[Expected]


def package(
    model: nn.Module,
    args: Any,
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    atol: float | None = None,
    rtol: float | None = None,
) -> Package:
    """Write a model with recurrent layers to one file that needs none of its Python source, and check it first.

    1. `.pt2`: compiled by AOTInductor; `torch._inductor.aoti_load_package(path)` loads it, or C++. It refuses an input
       with another rank, dtype, device or fixed size than it was made for. Writing it needs a C++ compiler and
       torch >= 2.13; it runs on the kind of processor that it was written on.
    2. `.pt`: scripted and frozen by TorchScript; `torch.jit.load(path)` loads it, or C++. It fixes no axis.

    The file is written as the model computes in evaluation mode on the CPU, under a temporary name; it is loaded again
    and compared with `model`, on the example and on random inputs of other sizes; then it is moved to `path`. An older
    file stays until then.

    Args:
        model: any module that `convert` takes; it is not changed.
        args: example arguments: a tuple, or one tensor.
        path: of the file to write, ending in .pt2 or .pt; its folder must exist.
        kwargs: example keyword arguments.
        dynamic_shapes: name of each dynamic axis, such as {"tokens": {0: "B", 1: "T"}}; or a `torch.export.Dim` with
            its range. None: T and B of a bare layer, no axis of another model.
        atol: allowed absolute difference. If neither it nor `rtol` is given: 1e-5 if the model has any weights in
            float32, 1e-9 if all are float64, of an element's magnitude where that is above 1, and at least ten times
            PyTorch's own distance from float64 on the same inputs. Whole numbers and booleans must be equal.
        rtol: allowed difference as a share of the element's magnitude, in addition to `atol`.

    Raises:
        ExportError: another suffix; the model fails on the example, or gives other numbers when it is called again;
            PyTorch cannot script or compile it; there is no C++ compiler.
        DynamicAxisError: an axis was requested as dynamic that the model fixes.
        VerificationError: the file's numbers differ from the model's; no file is left.
        ConversionError: a recurrent layer that `convert` cannot replace, or a TorchScript module.
        ValueError, TypeError: a `model`, `atol`, `rtol` or `args` that cannot be used.
    """
    check_module(model)
    path = target(path, "model.pt2")
    if path.suffix not in (".pt2", ".pt"):
        raise ExportError(
            f"`path` (={str(path)!r}) must end in .pt2 (AOTInductor) or .pt (TorchScript)."
        )
    tolerance = Tolerance(atol, rtol, model_precision(model))
    model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
    reference = Reference(model)
    check_two_calls(reference.model, call)
    example = _with_least_sizes(reference, DynamicCall.of(model, call, dynamic_shapes))
    trials = list(_trials(reference, example))

    def write_and_check(temporary: Path) -> Package:
        function = _write(convert_for_inference(model), example, trials, temporary)
        differences = _compare(function, trials, tolerance, path.name)
        return Package(str(path), temporary.stat().st_size, example.shapes, differences)

    return replace_file(path, write_and_check)


def _with_least_sizes(reference: Reference, example: DynamicCall) -> DynamicCall:
    """Let each axis begin at 1 if the model takes that, else at 2: torch.export does not tell the two apart."""
    random = torch.Generator().manual_seed(0)
    sizes = example.sizes
    ranges = {}
    for axis in sizes:
        outputs = _outputs_or_none(reference, example.drawn(sizes | {axis: 1}, random))
        least = 1 if outputs else 2
        ranges[axis] = replace(axis, least=max(axis.least, least))
    return example.with_ranges(ranges)


def _trials(reference: Reference, example: DynamicCall) -> Iterator[Trial]:
    """The example, and random inputs of other sizes. What the model itself refuses is left out.

    Raises:
        ExportError: the model refuses the example, or every other size of an axis.
    """
    example_sizes = example.sizes
    random = torch.Generator().manual_seed(0)
    yield _example_trial(reference, example)
    varied = {axis for axis in example_sizes if axis.most <= 2}
    for additions in size_assignments(list(example_sizes), TRIED_ABOVE_LEAST):
        sizes = {
            axis: min(axis.least + addition, axis.most) for axis, addition in additions.items()
        }
        call = example.drawn(sizes, random)
        outputs = _outputs_or_none(reference, call)
        if not outputs:
            continue
        size_labels = [f"{axis.name}={size}" for axis, size in sizes.items()]
        label = ", ".join(["random input", *size_labels])
        yield Trial(label, call, sizes, reference.expected(call, outputs, label))
        # An axis of size 1 proves nothing: the model may broadcast it.
        varied |= {axis for axis, size in sizes.items() if size not in (1, example_sizes[axis])}
    fixed_names = [axis.name for axis in example_sizes if axis not in varied]
    if fixed_names:
        raise DynamicAxisError(
            f"`{fixed_names[0]}` cannot be dynamic: the model takes no other size than the example's; leave it out of "
            f"`dynamic_shapes`, or give its range, such as Dim('{fixed_names[0]}', min=2, max=9)."
        )


def _example_trial(reference: Reference, example: DynamicCall) -> Trial:
    try:
        outputs = reference.outputs(example.call)
    except Exception as error:  # the model's own code can raise anything
        raise ExportError(
            f"the model itself fails on the example: {type(error).__name__}: {error}"
        ) from error
    if not outputs:
        raise ExportError("the model returns no tensor, so that there is nothing to compare.")
    expected = reference.expected(example.call, outputs, "the example")
    return Trial("the example", example.call, example.sizes, expected)


def _outputs_or_none(reference: Reference, call: ExampleCall) -> list[Tensor] | None:
    try:
        return reference.outputs(call)
    except Exception:  # the model's own code can raise anything
        return None


def _write(
    model: nn.Module, example: DynamicCall, trials: Sequence[Trial], path: Path
) -> Callable[..., Any]:
    """Write the file, and load the function in it."""
    if path.suffix == ".pt":
        torchscript.script_file(model, path)
        return torchscript.load_file(path)
    # torch.export takes an axis of size 1 for fixed.
    traceable = [trial for trial in trials if 1 not in trial.sizes.values()]
    if not traceable:
        raise ExportError(
            "PyTorch takes an axis of size 1 for fixed, and the model takes no call without one."
        )
    aot.compile_file(model, traceable[0].call, example.axes, path)
    return aot.load_file(path)


def _compare(
    function: Callable[..., Any], trials: Sequence[Trial], tolerance: Tolerance, file_name: str
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
        if len(outputs) != len(largest):
            raise VerificationError(
                f"{file_name} is not the model: it gives {len(outputs)} tensors, PyTorch {len(largest)}."
            )
        for number, (expected, output) in enumerate(zip(trial.expected, outputs, strict=True)):
            where = f"{file_name} is not the model: output {number} on {trial.label}"
            largest[number] = max(
                largest[number], _largest_difference(expected, output, tolerance, where)
            )
    return tuple(largest)


def _largest_difference(
    expected: Expected, output: Tensor, tolerance: Tolerance, where: str
) -> float:
    """Compare one output; raise VerificationError if it differs too much anywhere."""
    actual = output.numpy()
    if actual.shape != expected.values.shape or actual.dtype != expected.values.dtype:
        raise VerificationError(
            f"{where} is {actual.dtype}{list(actual.shape)}, "
            f"PyTorch gives {expected.values.dtype}{list(expected.values.shape)}."
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
