"""`package`: write a model to one file that runs without its Python source, once the file is checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy_rnn.any_size import AnySize
from deploy_rnn.checking.branches import Condition
from deploy_rnn.checking.cell_calls import count_cell_calls
from deploy_rnn.checking.example_call import ExampleCall, on_cpu
from deploy_rnn.checking.module import check_module
from deploy_rnn.checking.python_loops import python_loop
from deploy_rnn.checking.tolerance import Tolerance, model_precision
from deploy_rnn.checking.trials import Reference
from deploy_rnn.checking.two_calls import check_two_calls
from deploy_rnn.conversion import convert_for_inference
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.files import replace_file, target
from deploy_rnn.model_errors import warn_user
from deploy_rnn.nn.library import assign_kernels, check_recurrence
from deploy_rnn.nn.loops import noted_loops
from deploy_rnn.nn.recurrent import is_plain_layer, is_recurrent
from deploy_rnn.packaging import aot, torchscript
from deploy_rnn.packaging.axes import NO_LIMIT, Axis, DynamicCall
from deploy_rnn.packaging.found_axes import BATCH, STEPS, found_axes
from deploy_rnn.packaging.tracing import Traced, trace
from deploy_rnn.packaging.trials import (
    Trial,
    broken_sizes,
    largest_differences,
    random_trial,
    trials_of,
    with_least_sizes,
)
from deploy_rnn.packing.packing import refuse_packed
from deploy_rnn.tensor_spec import SizeRange

CODE = "code"
GRAPH = "graph"


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
        source: "code" if the file was made from the model's own Python code, "graph" if from the graph of torch.export.
        ranges: axes that may not have every size, in a file from a graph -> the sizes that they may have.
        conditions: what else a file from a graph requires of the sizes, such as "T <= 6*B": the model goes another way
            for others, or refuses them.

    `print(...)` shows all of them.
    """

    path: str
    bytes: int
    inputs: dict[str, tuple[int | str, ...]]
    differences: tuple[float, ...]
    half_parts: str = ""
    source: str = CODE
    ranges: Mapping[str, SizeRange] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()

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
        limits = [f"{name} of {sizes}" for name, sizes in self.ranges.items()]
        limits += [f"where {condition}" for condition in self.conditions]
        parts[2:2] = limits
        if self.half_parts:
            parts.append(self.half_parts)
        if self.source == GRAPH and self.path.endswith(".pt"):
            parts.append("from the graph of torch.export")
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
    recurrence: str = "auto",
) -> Package:
    """Write a model with recurrent layers to one file that needs none of its Python source, and check it first.

    1. `.pt2`: compiled by AOTInductor; `torch._inductor.aoti_load_package(path)` loads it, or C++. It refuses an input
       with another rank, dtype, device or fixed size than it was made for. Writing it needs a C++ compiler and
       torch >= 2.13; it runs on the kind of processor that it was written on.
    2. `.pt`: scripted and frozen by TorchScript; `torch.jit.load(path)` loads it, or C++. Where TorchScript takes the
       model's own code, it fixes no axis. Otherwise it is made from the graph of torch.export, as a .pt2 file is, and
       refuses the same inputs.

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
            has others), and further axes that the model takes in other sizes, called "memory_1" and so on; one that
            PyTorch's graph fixes is fixed, in a file from a graph with a warning.
        atol: allowed absolute difference. If neither it nor `rtol` is given: 1e-5 if the model has any weights in
            float32, 1e-9 if all are float64, of an element's magnitude where that is above 1, and at least ten times
            PyTorch's own distance from float64 on the same inputs; 2e-2 if parts of it compute in float16, 5e-2 in
            bfloat16. Whole numbers and booleans must be equal.
        rtol: allowed difference as a share of the element's magnitude, in addition to `atol`.
        recurrence: what computes the layers in a .pt2 file: "library", "scan" or "auto", as in `deploy_rnn.compile`.

    Raises:
        ExportError: another suffix; the model fails on the example, or gives other numbers when it is called again;
            PyTorch cannot script or compile it; there is no C++ compiler.
        DynamicAxisError: an axis was requested as dynamic that the model fixes.
        VerificationError: the file's numbers differ from the model's; no file is left.
        ConversionError: a recurrent layer that `convert` cannot replace, or a TorchScript module.
        ValueError, TypeError: a `model`, `atol`, `rtol`, `recurrence` or `args` that cannot be used.

    Warns:
        UserWarning: without `dynamic_shapes`, a file from a graph fixes one of these axes.
    """
    check_recurrence(recurrence)
    model = check_module(model)
    path = target(path, "model.pt2")
    if path.suffix not in (".pt2", ".pt"):
        raise ExportError(
            f"`path` (={str(path)!r}) must end in .pt2 (AOTInductor) or .pt (TorchScript)."
        )
    tolerance = Tolerance(atol, rtol, model_precision(model))
    model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
    if not is_plain_layer(model):
        refuse_packed(call.arguments)
    reference = Reference(model)
    check_two_calls(reference.model, call)
    tolerance = tolerance.with_half(reference.half_precision(call))

    draft = _Draft(reference, tolerance, path)

    def packaged(write: Write) -> Package:
        if dynamic_shapes is not None or is_plain_layer(model):
            return draft.written(DynamicCall.of(model, call, dynamic_shapes), write)
        return _written_with_found_axes(draft, call, write)

    write_graph = partial(_write_graph, model, recurrence, draft)
    if path.suffix == ".pt2":
        return packaged(write_graph)
    try:
        module = torchscript.scripted(convert_for_inference(model))
        return packaged(partial(_save_scripted, module))
    except ExportError as error:
        refusal = error
    # The code of other people is seldom such that TorchScript takes it.
    try:
        return packaged(write_graph)
    except ExportError as error:
        if str(error) != str(refusal):
            raise _with_refusal(error, refusal) from error
        raise


def _with_refusal(error: ExportError, refusal: ExportError) -> ExportError:
    """The error of the graph, and what TorchScript says of the code that it came from."""
    text = f"{error} The model's own code is refused, too: {refusal}"
    if isinstance(error, DynamicAxisError):
        return DynamicAxisError(text, error.reason)
    return ExportError(text)


@dataclass(frozen=True)
class _File:
    """What was written, before it is checked.

    Attributes:
        function: loaded from it.
        source: as `Package.source`.
        example: the example call, with the ranges of its axes that the file takes.
        conditions: what it requires of the sizes.
    """

    function: Callable[..., Any]
    source: str
    example: DynamicCall
    conditions: Sequence[Condition] = ()

    @property
    def ranges(self) -> dict[str, SizeRange]:
        """The axes that may not have every size. The model's own code decides on that by itself."""
        if self.source == CODE:
            return {}
        ranges = {}
        for axis in self.example.sizes:
            most = axis.most if axis.most < NO_LIMIT else None
            limits = SizeRange(max(axis.least, 1), most)
            if limits.is_limited:
                ranges[axis.name] = limits
        return ranges


Write = Callable[[DynamicCall, Sequence[Trial], Path], _File]
"""Writes a file with the axes of a call open; the trials are what it will be checked on."""


@dataclass(frozen=True)
class _Draft:
    """A file that is yet to be written and checked."""

    reference: Reference
    tolerance: Tolerance
    path: Path

    def written(self, example: DynamicCall, write: Write) -> Package:
        """Write the file with the axes of `example` open, check it, and move it into place."""
        example = with_least_sizes(self.reference, example)
        trials = list(trials_of(self.reference, example))

        def write_and_check(temporary: Path) -> Package:
            file = write(example, trials, temporary)
            tried = trials
            if file.example.axes != example.axes:
                tried = list(trials_of(self.reference, file.example))
            taken = [trial for trial in tried if _hold(file.conditions, trial.sizes)]
            differences = largest_differences(file.function, taken, self.tolerance, self.path.name)
            return Package(
                path=str(self.path),
                bytes=temporary.stat().st_size,
                inputs=example.shapes,
                differences=differences,
                half_parts=self.tolerance.half_parts,
                source=file.source,
                ranges=file.ranges,
                conditions=tuple(str(condition) for condition in file.conditions),
            )

        return replace_file(self.path, write_and_check)

    def required(
        self, traced: Traced, example: DynamicCall, trials: Sequence[Trial]
    ) -> list[Condition]:
        """The conditions of a graph without which it is not the model: its outputs differ, or the model has none.

        Most conditions are mere notes of torch.export, and the graph is right without them.
        """
        if not traced.conditions:
            return []
        graph: Callable[..., Any]
        try:
            graph = torchscript.scripted_graph(traced)
        except ExportError:  # the slower one takes every operator
            graph = traced.program.module(check_guards=False)
        wrong: list[Sizes] = []
        right: list[Sizes] = []
        for condition in traced.conditions:
            for sizes in broken_sizes(condition, example, trials):
                if sizes not in [*wrong, *right]:
                    agrees = self._agrees(graph, example, sizes)
                    (right if agrees else wrong).append(sizes)
        return _chosen(traced.conditions, wrong, right)

    def _agrees(
        self, graph: Callable[..., Any], example: DynamicCall, sizes: Mapping[Axis, int]
    ) -> bool:
        """Whether a graph gives what the model gives for these sizes; not where the model gives nothing."""
        trial = random_trial(self.reference, example, sizes)
        if trial is None:
            return False
        try:
            largest_differences(graph, [trial], self.tolerance, "the graph")
        except ExportError:
            return False
        return True


Sizes = Mapping[Axis, int]
"""The size of each dynamic axis."""


def _chosen(
    conditions: Sequence[Condition], wrong: Sequence[Sizes], right: Sequence[Sizes]
) -> list[Condition]:
    """Few conditions that are not true of the wrong sizes, and are of most right ones."""
    chosen: list[Condition] = []

    def worth(condition: Condition) -> tuple[int, int, int]:
        lost = [sizes for sizes in right if not _hold([condition], sizes)]
        refused = [sizes for sizes in wrong if not _hold([condition], sizes)]
        return -len(lost), len(refused), -len(str(condition))

    while wrong:
        candidates = [one for one in conditions if not all(_hold([one], sizes) for sizes in wrong)]
        chosen.append(max(candidates, key=worth))
        wrong = [sizes for sizes in wrong if _hold(chosen, sizes)]
    return chosen


def _hold(conditions: Sequence[Condition], sizes: Mapping[Axis, int]) -> bool:
    """Whether conditions are true of the sizes of these axes."""
    sizes_by_name = {axis.name: size for axis, size in sizes.items()}
    return all(condition.holds(sizes_by_name) for condition in conditions)


def _written_with_found_axes(draft: _Draft, call: ExampleCall, write: Write) -> Package:
    """Write the file with every axis open that the model has in other sizes, and lets be open."""
    reference = draft.reference
    found = found_axes(reference, call)
    example = DynamicCall.of(reference.model, call, call.shapes(found.names))
    reasons = {}
    missing = [
        name for name in found.fixed if name == BATCH or not _takes_one_step(reference, call)
    ]
    if missing:
        with AnySize(inside=__name__, model=reference.model) as any_size:
            reference.outputs(call)
        for name in missing:
            reasons[name] = f"no axis of the inputs is that by itself{any_size.why_fixed}"
    first_error = None
    package = None
    while package is None:
        try:
            package = draft.written(example, write)
        except ExportError as error:
            first_error = first_error or error
            if not example.names:
                raise first_error from None
            reason = str(error).partition(";")[0]
            if isinstance(error, DynamicAxisError):
                reason = error.reason
            for name in _names_to_fix(example, error):
                reasons[name] = reason
                example = example.without(name)
    if package.source == GRAPH:
        reasons = {name: _with_loop(reason, reference, call) for name, reason in reasons.items()}
        _warn_of_fixed_axes(package.path, reasons)
    return package


def _with_loop(reason: str, reference: Reference, call: ExampleCall) -> str:
    """The reason why an axis is fixed, with the loop over it if there is no other cause yet."""
    if "the model fixes it" not in reason or " (" in reason:
        return reason
    loop = python_loop(reference.model, call)
    return (
        f"{reason} ({loop}, which PyTorch writes out: deploy_rnn.scan stays a loop)"
        if loop
        else reason
    )


def _warn_of_fixed_axes(path: str, reasons: Mapping[str, str]) -> None:
    """Say which axes have the size of the example only; `reasons`: name of each -> why. One cause is said once."""
    names_of: dict[str, list[str]] = {}
    for name in reasons:
        cause = reasons[name].partition(" (")[2] or reasons[name]
        names_of.setdefault(cause, []).append(name)
    for names in names_of.values():
        described = ", ".join(dict.fromkeys(map(_in_words, names)))
        warn_user(
            f"{Path(path).name} takes {described} of the example only: {reasons[names[0]]}; give `dynamic_shapes`."
        )


def _in_words(name: str) -> str:
    """What a found axis is."""
    meaning = _meaning(name)
    if meaning == BATCH:
        return "the batch"
    return "the steps" if meaning == STEPS else f"axis `{name}`"


def _meaning(name: str) -> str:
    """BATCH or STEPS for one of the axes that are called so, of which further ones have a number."""
    return name.rstrip("0123456789")


def _takes_one_step(reference: Reference, call: ExampleCall) -> bool:
    """Whether a model has cells, and calls each of them once at most: it has no steps."""
    model = reference.model
    with count_cell_calls(model, caller=__name__) as cells, noted_loops() as loops:
        reference.outputs(call)
    has_layers = any(is_recurrent(module) for module in model.modules())
    return bool(cells) and not has_layers and not loops and all(cell.number <= 1 for cell in cells)


def _names_to_fix(example: DynamicCall, error: ExportError) -> list[str]:
    """The axes to give up after an error: the one that it names, if any; else those that are neither batch nor steps,
    then the steps, and the batch last."""
    for name in example.names:
        if f"`{name}`" in str(error):
            return [name]
    others = [name for name in example.names if _meaning(name) not in (BATCH, STEPS)]
    return others or [min(example.names, key=lambda name: name == BATCH)]


def _write_graph(
    model: nn.Module,
    recurrence: str,
    draft: _Draft,
    example: DynamicCall,
    trials: Sequence[Trial],
    path: Path,
) -> _File:
    """Write a file from the model's graph, which requires the sizes of the sides that it has of each branch."""
    converted = convert_for_inference(model)
    if draft.path.suffix == ".pt2":
        assign_kernels(converted, recurrence)
    call = _traceable(trials)
    traced = trace(converted, call, example.axes)
    example = example.with_axes(traced.axes)
    conditions = draft.required(traced, example, trials)
    if draft.path.suffix == ".pt":
        module = torchscript.scripted_graph(traced, conditions)
        return _saved(module, GRAPH, example, path, conditions)
    aot.compile_file(converted, call, traced.axes, conditions, path)
    return _File(aot.load_file(path), GRAPH, example, conditions)


def _save_scripted(
    module: torch.jit.ScriptModule, example: DynamicCall, _: Sequence[Trial], path: Path
) -> _File:
    """Write a `.pt` file from the model's code, which has both sides of each branch."""
    return _saved(module, CODE, example, path)


def _saved(
    module: torch.jit.ScriptModule,
    source: str,
    example: DynamicCall,
    path: Path,
    conditions: Sequence[Condition] = (),
) -> _File:
    file = _File(module, source, example, conditions)
    about = {
        "source": source,
        "inputs": example.shapes,
        "ranges": file.ranges,
        "conditions": [str(condition) for condition in conditions],
    }
    torchscript.write_file(module, path, about)
    return replace(file, function=torchscript.load_file(path))


def _traceable(trials: Sequence[Trial]) -> ExampleCall:
    """A call without an axis of size 1, which torch.export takes for fixed."""
    traceable = [trial for trial in trials if 1 not in trial.sizes.values()]
    if not traceable:
        raise ExportError(
            "PyTorch takes an axis of size 1 for fixed, and the model takes no call without one."
        )
    return traceable[0].call
