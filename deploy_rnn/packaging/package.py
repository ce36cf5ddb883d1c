"""`package`: write a model to one file that runs without its Python source, once the file is checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from deploy_rnn.checking.branches import Condition
from deploy_rnn.checking.cell_calls import count_cell_calls
from deploy_rnn.checking.example_call import ExampleCall, on_cpu
from deploy_rnn.checking.module import check_module
from deploy_rnn.checking.tolerance import Tolerance, model_precision
from deploy_rnn.checking.trials import Reference
from deploy_rnn.checking.two_calls import check_two_calls
from deploy_rnn.conversion import convert_for_inference
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.files import replace_file, target
from deploy_rnn.model_errors import warn_user
from deploy_rnn.nn.loops import noted_loops
from deploy_rnn.nn.recurrent import is_plain_layer, is_recurrent
from deploy_rnn.packaging import aot, torchscript
from deploy_rnn.packaging.axes import DynamicCall
from deploy_rnn.packaging.found_axes import BATCH, STEPS, found_axes
from deploy_rnn.packaging.trials import (
    Trial,
    largest_differences,
    trials_beyond,
    trials_of,
    with_least_sizes,
)


@dataclass(frozen=True)
class Package:
    """What was written, and how it was checked.

    Attributes:
        path: the file.
        bytes: its size.
        inputs: name -> shape: a number for each axis that was checked at the example's size only, a name such as "B"
            for each dynamic one. A .pt2 file refuses other sizes.
        differences: for each output, the largest absolute difference from the model over everything that was run.
        half_parts: the half precision in which parts of the model compute, and what may differ for that reason, such
            as "float16 parts: 0.02"; empty if there are none.

    `print(...)` shows all of them.
    """

    path: str
    bytes: int
    inputs: dict[str, tuple[int | str, ...]]
    differences: tuple[float, ...]
    half_parts: str = ""

    def __str__(self) -> str:
        inputs = []
        for name, shape in self.inputs.items():
            sizes = ", ".join(str(size) for size in shape)
            inputs.append(f"{name} [{sizes}]")
        largest = max(self.differences, default=0.0)
        parts = [
            f"{self.bytes / 1e3:,.0f} kB",
            ", ".join(inputs),
            f"largest difference {largest:.0e}",
        ]
        if self.half_parts:
            parts.append(self.half_parts)
        return f"{self.path}: {'; '.join(parts)}"


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

    Both take a model that packs its rows (`pack_padded_sequence`, `pad_packed_sequence`) by lengths that are a tensor.

    The file is written as the model computes in evaluation mode on the CPU, under a temporary name; it is loaded again
    and compared with `model`, on the example and on random inputs of other sizes; then it is moved to `path`. An older
    file stays until then.

    Args:
        model: any module that `convert` takes; it is not changed.
        args: example arguments: a tuple, or one tensor.
        path: of the file to write, ending in .pt2 or .pt; its folder must exist.
        kwargs: example keyword arguments.
        dynamic_shapes: name of each dynamic axis, such as {"tokens": {0: "B", 1: "T"}}; or a `torch.export.Dim` with
            its range. None: the batch and the steps of the recurrent layers, called "B" and "T" ("T1" where a decoder
            has others), and no other axis; one that the model fixes is fixed, and in a .pt2 file with a warning.
        atol: allowed absolute difference. If neither it nor `rtol` is given: 1e-5 if the model has any weights in
            float32, 1e-9 if all are float64, of an element's magnitude where that is above 1, and at least ten times
            PyTorch's own distance from float64 on the same inputs; 2e-2 if parts of it compute in float16, 5e-2 in
            bfloat16. Whole numbers and booleans must be equal.
        rtol: allowed difference as a share of the element's magnitude, in addition to `atol`.

    Raises:
        ExportError: another suffix; the model fails on the example, or gives other numbers when it is called again;
            PyTorch cannot script or compile it; there is no C++ compiler.
        DynamicAxisError: an axis was requested as dynamic that the model fixes.
        VerificationError: the file's numbers differ from the model's; no file is left.
        ConversionError: a recurrent layer that `convert` cannot replace, or a TorchScript module.
        ValueError, TypeError: a `model`, `atol`, `rtol` or `args` that cannot be used.

    Warns:
        UserWarning: without `dynamic_shapes`, the batch or the steps of the recurrent layers are fixed in a .pt2 file.
    """
    model = check_module(model)
    path = target(path, "model.pt2")
    if path.suffix not in (".pt2", ".pt"):
        raise ExportError(
            f"`path` (={str(path)!r}) must end in .pt2 (AOTInductor) or .pt (TorchScript)."
        )
    tolerance = Tolerance(atol, rtol, model_precision(model))
    model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
    reference = Reference(model)
    check_two_calls(reference.model, call)
    tolerance = tolerance.with_half(reference.half_precision(call))

    def written(example: DynamicCall) -> Package:
        example = with_least_sizes(reference, example)
        trials = list(trials_of(reference, example))

        def write_and_check(temporary: Path) -> Package:
            function, conditions = _write(convert_for_inference(model), example, trials, temporary)
            beyond = trials_beyond(reference, example, conditions)
            differences = largest_differences(
                function, [*trials, *beyond], tolerance, path.name, conditions
            )
            size = temporary.stat().st_size
            return Package(str(path), size, example.shapes, differences, tolerance.half_parts)

        return replace_file(path, write_and_check)

    if dynamic_shapes is not None or is_plain_layer(model):
        return written(DynamicCall.of(model, call, dynamic_shapes))
    return _written_with_found_axes(reference, call, path, written)


def _written_with_found_axes(
    reference: Reference,
    call: ExampleCall,
    path: Path,
    written: Callable[[DynamicCall], Package],
) -> Package:
    """Write the file with B and T open where the model has them, and lets them be open."""
    shapes = call.shapes(found_axes(reference, call))
    example = DynamicCall.of(reference.model, call, shapes)
    reasons = {}
    for name in (BATCH,) if _takes_one_step(reference, call) else (STEPS, BATCH):
        if name not in example.names:
            reasons[name] = "no axis of the inputs is that by itself"
    first_error = None
    package = None
    while package is None:
        try:
            package = written(example)
        except ExportError as error:
            first_error = first_error or error
            if not example.names:
                raise first_error from None
            name = _name_to_fix(example, error)
            reasons[name] = (
                error.reason
                if isinstance(error, DynamicAxisError)
                else str(error).partition(";")[0]
            )
            example = example.without(name)
    if path.suffix == ".pt2":
        for name, reason in reasons.items():
            meaning = "batch" if name.startswith(BATCH) else "steps"
            warn_user(
                f"{path.name} takes the {meaning} of the example only: {reason}; give `dynamic_shapes`, or write a "
                ".pt file, which fixes no axis."
            )
    return package


def _takes_one_step(reference: Reference, call: ExampleCall) -> bool:
    """Whether a model has cells, and calls each of them once at most: it has no steps."""
    model = reference.model
    with count_cell_calls(model, caller=__name__) as cells, noted_loops() as loops:
        reference.outputs(call)
    has_layers = any(is_recurrent(module) for module in model.modules())
    return bool(cells) and not has_layers and not loops and all(cell.number <= 1 for cell in cells)


def _name_to_fix(example: DynamicCall, error: ExportError) -> str:
    """The axis to give up after an error: the one that it names, if any; else the batch is the last."""
    named = [name for name in example.names if f"`{name}`" in str(error)]
    return min(named or example.names, key=lambda name: name == BATCH)


def _write(
    model: nn.Module, example: DynamicCall, trials: Sequence[Trial], path: Path
) -> tuple[Callable[..., Any], list[Condition]]:
    """Write the file: -> the function in it, and what is true of the sizes on its side of each branch."""
    if path.suffix == ".pt":
        torchscript.script_file(model, path)
        return torchscript.load_file(path), []  # it has both sides of each branch
    # torch.export takes an axis of size 1 for fixed.
    traceable = [trial for trial in trials if 1 not in trial.sizes.values()]
    if not traceable:
        raise ExportError(
            "PyTorch takes an axis of size 1 for fixed, and the model takes no call without one."
        )
    conditions = aot.compile_file(model, traceable[0].call, example.axes, path)
    return aot.load_file(path), conditions
