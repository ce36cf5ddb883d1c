"""`package`: a model becomes one file that runs without its Python source, and has been run and compared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall, on_cpu
from deploy_rnn.checking.tolerance import Expected, Tolerance, difference, model_precision
from deploy_rnn.checking.trials import Reference, size_assignments
from deploy_rnn.conversion import convert
from deploy_rnn.errors import DynamicAxisError, ExportError, VerificationError
from deploy_rnn.files import replace_file, target
from deploy_rnn.packaging import aot, torchscript
from deploy_rnn.packaging.axes import Axis, DynamicCall

BEYOND = (0, 1, 2, 6, 32)
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

    `print(...)` shows all of it.
    """

    path: str
    bytes: int
    inputs: dict[str, tuple[int | str, ...]]
    differences: tuple[float, ...]

    def __str__(self) -> str:
        shapes = [f"{name} [{', '.join(map(str, shape))}]" for name, shape in self.inputs.items()]
        worst = max(self.differences, default=0.0)
        return f"{self.path}: {self.bytes / 1e3:,.0f} kB; {', '.join(shapes)}; largest difference {worst:.0e}"


@dataclass(frozen=True)
class Trial:
    """One call, and what PyTorch makes of it."""

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
    and compared with `model`, on the example and on random inputs of other sizes; then it is moved to `path`. What was
    there before stays until then.

    Args:
        model: any module that `convert` takes; it is not changed.
        args: example arguments: a tuple, or one tensor.
        path: where the file is to be, ending in .pt2 or .pt; its folder must exist.
        kwargs: example keyword arguments.
        dynamic_shapes: name of each dynamic axis, such as {"tokens": {0: "B", 1: "T"}}; or a `torch.export.Dim` with
            its range. None: T and B of a bare layer, no axis of another model.
        atol: allowed absolute difference. If neither it nor `rtol` is given: 1e-5 if the model has any weights in
            float32, 1e-9 if all are float64, of an element's magnitude where that is above 1, and at least ten times
            PyTorch's own distance from float64 on the same inputs. Whole numbers and booleans must be equal.
        rtol: allowed difference as a share of the element's magnitude, beside `atol`.

    Raises:
        ExportError: another suffix; PyTorch cannot script or compile the model; there is no C++ compiler.
        DynamicAxisError: an axis was asked to be dynamic that the model fixes.
        VerificationError: the file's numbers differ from the model's; no file is left.
        ConversionError: a recurrent layer that `convert` cannot replace.
        ValueError, TypeError: an `atol`, `rtol` or `args` that cannot be used.
    """
    path = target(path, "model.pt2")
    if path.suffix not in (".pt2", ".pt"):
        raise ExportError(f"`path` (={str(path)!r}) must end in .pt2 (AOTInductor) or .pt (TorchScript).")
    limits = Tolerance(atol, rtol, model_precision(model))
    model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
    reference = Reference(model)
    example = _from_one(reference, DynamicCall.of(model, call, dynamic_shapes))
    trials = list(_trials(reference, example))

    def write_and_check(temporary: Path) -> Package:
        run = _write(convert(model).eval(), example, trials, temporary)
        differences = _compared(run, trials, limits, path.name)
        return Package(str(path), temporary.stat().st_size, example.shapes, differences)

    return replace_file(path, write_and_check)


def _from_one(reference: Reference, example: DynamicCall) -> DynamicCall:
    """Begin each axis at 1 if the model takes that, else at 2: torch.export does not tell the two apart."""
    random, sizes = torch.Generator().manual_seed(0), example.sizes
    first = {axis: 1 if _tried(reference, example.drawn(sizes | {axis: 1}, random)) else 2 for axis in sizes}
    return example.renamed({axis: replace(axis, least=max(axis.least, first[axis])) for axis in sizes})


def _trials(reference: Reference, example: DynamicCall) -> Iterator[Trial]:
    """The example, and random inputs of other sizes. What the model itself refuses is left out.

    Raises:
        ExportError: the model refuses the example, or every other size of an axis.
    """
    sizes, random = example.sizes, torch.Generator().manual_seed(0)
    yield _example_trial(reference, example)
    varied = {axis for axis in sizes if axis.most <= 2}
    for beyond in size_assignments(list(sizes), BEYOND):
        at = {axis: min(axis.least + more, axis.most) for axis, more in beyond.items()}
        drawn = example.drawn(at, random)
        if outputs := _tried(reference, drawn):
            label = ", ".join(["random input", *(f"{axis.name}={size}" for axis, size in at.items())])
            yield Trial(label, drawn, at, reference.expected(drawn, outputs, label))
            varied |= {axis for axis, size in at.items() if size not in (1, sizes[axis])}  # 1 may be broadcast
    if fixed := [axis.name for axis in sizes if axis not in varied]:
        raise DynamicAxisError(
            f"`{fixed[0]}` cannot be dynamic: the model takes no other size than the example's; leave it out of "
            f"`dynamic_shapes`, or give its range, such as Dim('{fixed[0]}', min=2, max=9)."
        )


def _example_trial(reference: Reference, example: DynamicCall) -> Trial:
    try:
        outputs = reference.outputs(example.call)
    except Exception as error:  # whatever the model's own code raises
        raise ExportError(f"the model itself fails on the example: {type(error).__name__}: {error}") from error
    if not outputs:
        raise ExportError("the model returns no tensor, so that there is nothing to compare.")
    expected = reference.expected(example.call, outputs, "the example")
    return Trial("the example", example.call, example.sizes, expected)


def _tried(reference: Reference, call: ExampleCall) -> list[Tensor] | None:
    try:
        return reference.outputs(call)
    except Exception:  # whatever the model's own code raises
        return None


def _write(model: nn.Module, example: DynamicCall, trials: Sequence[Trial], path: Path) -> Callable[..., Any]:
    """-> the function that the written file holds."""
    if path.suffix == ".pt":
        torchscript.script_file(model, path)
        return torchscript.load_file(path)
    traced = next((trial for trial in trials if all(size > 1 for size in trial.sizes.values())), None)
    if traced is None:
        raise ExportError("PyTorch takes an axis of size 1 for fixed, and the model takes no call without one.")
    aot.compile_file(model, traced.call, example.axes, path)
    return aot.load_file(path)


def _compared(run: Callable[..., Any], trials: Sequence[Trial], limits: Tolerance, name: str) -> tuple[float, ...]:
    """Everything twice: TorchScript optimises after its first calls, and no call may depend on the one before."""
    worst = [0.0] * len(trials[0].expected)
    for trial in [*trials, *trials]:
        try:
            outputs = trial.call.run(run)
        except Exception as error:  # whatever PyTorch raises
            raise ExportError(f"{name} fails on {trial.label}: {error}") from error
        if len(outputs) != len(worst):
            raise VerificationError(f"{name} is not the model: it gives {len(outputs)} tensors, PyTorch {len(worst)}.")
        for number, (expected, output) in enumerate(zip(trial.expected, outputs, strict=True)):
            where = f"output {number} on {trial.label}"
            worst[number] = max(worst[number], _apart(expected, output, limits, f"{name} is not the model: {where}"))
    return tuple(worst)


def _apart(expected: Expected, output: Tensor, limits: Tolerance, where: str) -> float:
    """The largest difference; raises VerificationError if it is too large anywhere."""
    actual = output.numpy()
    if actual.shape != expected.values.shape or actual.dtype != expected.values.dtype:
        raise VerificationError(
            f"{where} is {actual.dtype}{list(actual.shape)}, "
            f"PyTorch gives {expected.values.dtype}{list(expected.values.shape)}."
        )
    apart, allowed = difference(expected.values, actual), limits.allowed(expected)
    if (apart > allowed).any():
        at = (apart - allowed).argmax()
        raise VerificationError(
            f"{where} differs by {apart.flat[at]:.1e}, allowed is {allowed.flat[at]:.1e} "
            "(`atol` and `rtol` change that)."
        )
    return float(apart.max(initial=0))
