"""`check`: a file is run on the cases of its model, in each runtime, and judged by what was found."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy_rnn.checking.branches import Condition
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.program import Program
from deploy_rnn.checking.tolerance import Tolerance
from deploy_rnn.checking.trials import SIZES, Reference
from deploy_rnn.errors import DynamicAxisError, ExportError, LoadError
from deploy_rnn.model_errors import warn_user
from deploy_rnn.runtime import PROVIDERS
from deploy_rnn.tensor_spec import ANY_SIZE

from ..bare_layer import is_layer
from ..onnx_file import OnnxFile
from ..precision.cost import Deviation, RoundingCost, rounding_costs
from ..precision.metric import ErrorMetric, MeasuredError
from ..precision.reference import Int8Reference, RoundedReference
from ..runtimes.faults import refuse_wrong
from ..runtimes.opened import Source
from ..runtimes.table import ONNXRUNTIME, runtime_named
from .cases import Case, CaseMaker
from .int8_integers import FileIntegers
from .on_onnxruntime import run_on
from .on_runtime import run_in
from .provenance import Provenance
from .relations import related
from .report import Report
from .runs import Plan, ProviderResult
from .time_axes import TimeAxes, time_axes
from .valid_file import read_valid, refuse_bfloat16
from .verdict import judge

LONG_STEPS = 200
"""The steps of one more case, if time is dynamic: enough to see an error that grows with them."""


@dataclass(frozen=True)
class CheckOptions:
    """How a file is checked; see `verify`.

    Raises:
        ValueError: `sizes` or `long_steps` out of range, an unknown runtime, or a provider for one that is not
            onnxruntime.
        RuntimeMissingError: a runtime that is not installed.
    """

    tolerance: Tolerance
    sizes: Sequence[int] = SIZES
    long_steps: int | None = LONG_STEPS
    require_provider: str | None = None
    runtimes: Sequence[str] = (ONNXRUNTIME,)
    max_error: float | ErrorMetric | None = None

    def __post_init__(self) -> None:
        for name in self.runtimes:
            if name != ONNXRUNTIME:
                runtime_named(name).check_installed()
        if self.require_provider is not None and ONNXRUNTIME not in self.runtimes:
            raise ValueError("`require_provider` is for onnxruntime; leave out it or `runtime`.")
        sizes = self.sizes if isinstance(self.sizes, Sequence) else ()
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(
                f"`sizes` (={self.sizes!r}) must be whole numbers from 1, such as (1, 3, 7)."
            )
        steps = self.long_steps
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(
                f"`long_steps` (={steps!r}) must be a whole number from 1, or None for no such case."
            )


def check(
    path: Path,
    reference: Reference,
    call: ExampleCall,
    options: CheckOptions,
    *,
    shown_as: Path,
    read_file: OnnxFile | None = None,
    forms: Mapping[str, float | str] | None = None,
    pair: Callable[[OnnxFile], OnnxFile] = lambda file: file,
    axis_advice: str | None = None,
    conditions: Sequence[Condition] = (),
) -> Report:
    """`verify`, for a file that may still have a temporary name.

    Args:
        path: where the file is now.
        reference: the PyTorch model, on the CPU.
        call: the example call of it, on the CPU.
        options: how to check.
        shown_as: the name that the file will have.
        read_file: what `read_valid` has returned; None if it was not called yet.
        forms: for the report: with form="auto", what each form took.
        pair: puts the inputs of the file in the order of the call's tensors, and its outputs in that of the model's;
            they are in order without it.
        axis_advice: of a file that is being exported: what to do about an axis that turns out to be fixed. None for a
            file that exists: its report says so.
        conditions: what was true of the sizes when the file was traced, if that is known.

    Raises:
        DynamicAxisError: an axis of an export that the model takes at the size of the example only.
        VerificationError, ExportError, LoadError, ProviderError, RunError: as for `verify`.
    """
    file = read_file or read_valid(path, shown_as)
    refuse_bfloat16(file)
    for name in options.runtimes:
        if name != ONNXRUNTIME:
            refuse_wrong(file, name)
    if isinstance(reference, Int8Reference):
        reference.rounds_as(FileIntegers.read(path).weights)
    half = reference.half_precision(call)
    options = replace(options, tolerance=options.tolerance.with_half(half))
    input_names = {spec.name for spec in file.inputs}
    paired_file = related(pair(file), reference, call, input_names)
    maker = CaseMaker(reference, call, paired_file, conditions)
    cases = list(maker.cases(options.sizes))
    if axis_advice is not None:
        _refuse_unchanged(maker, axis_advice)
    _warn_about_unvaried(maker, file)
    time = time_axes(reference, call, paired_file)
    long_cases, long_left_out = _long_cases(maker, time, options)
    plan = Plan(
        path=path,
        file=paired_file,
        cases=[*cases, *long_cases],
        timed=[cases[0], *long_cases],
        tolerance=options.tolerance,
        time_axes=time.outputs,
        required=options.require_provider,
        branches=maker.branches,
    )
    source = replace(Source.of(path, file), outputs=[spec.name for spec in paired_file.outputs])
    try:
        results = _run(plan, source, options)
    except LoadError as error:
        lacking = lacking_operator(error, half)
        if lacking:
            error_type = LoadError if axis_advice is None else ExportError
            raise error_type(lacking) from error
        # The file may still have a temporary name.
        raise LoadError(str(error).replace(str(path), str(shown_as))) from error
    deviations: Sequence[Deviation] = ()
    if isinstance(reference, RoundedReference):
        deviations = reference.taken_deviations()
    output_names = [spec.name for spec in file.outputs]
    hidden = _hidden(reference, file, output_names)
    report = _report(
        file,
        plan,
        results,
        Provenance.of(reference.model),
        unvaried=maker.unvaried,
        left_out=(*maker.untried, *long_left_out, *_rounding_left_out(reference)),
        forms=forms or {},
        rounding=rounding_costs(deviations, output_names, time.outputs, hidden),
        measured=_measured(deviations, options.max_error),
    )
    judge(report, plan, reference, options.max_error)
    return report


def _refuse_unchanged(maker: CaseMaker, axis_advice: str) -> None:
    """Raises: DynamicAxisError: the model takes an axis at the size of the example only."""
    for name, why in maker.unchanged.items():
        reason = f"axis {name} cannot be dynamic: {why}"
        raise DynamicAxisError(f"{reason}. {axis_advice}", reason, name)


def _warn_about_unvaried(maker: CaseMaker, file: OnnxFile) -> None:
    for name in maker.unvaried:
        warn_user(
            f"the example of `{name}` has one value all over, so {file.name} is checked with no other; "
            "give an example with the values that it takes."
        )


def _run(plan: Plan, source: Source, options: CheckOptions) -> list[ProviderResult]:
    """Run the plan in every runtime; in onnxruntime, on every provider that checks exports and the one required.

    Raises:
        LoadError: onnxruntime cannot open the file.
        ExportError, VerificationError, ProviderError, RunError: as for `verify`.
    """
    providers = []
    if ONNXRUNTIME in options.runtimes:
        providers += [name for name, entry in PROVIDERS.items() if entry.checks_exports]
    if options.require_provider is not None and options.require_provider not in providers:
        providers.append(options.require_provider)
    results = [run_on(provider, plan) for provider in providers]
    for name in options.runtimes:
        if name != ONNXRUNTIME:
            results.append(run_in(runtime_named(name), plan, source))
    return results


def lacking_operator(error: LoadError, half: str | None) -> str | None:
    """A sentence for an operator that onnxruntime lacks in half precision; None if the error is another."""
    match = re.search(r"Could not find an implementation for (\w+)", str(error))
    if half is None or match is None:
        return None
    return (
        f"parts of the model compute in {half}, and onnxruntime has no {match[1]} for it: let the model compute in "
        "float32, by its `.float()` and without torch.autocast."
    )


def _long_cases(
    maker: CaseMaker, time: TimeAxes, options: CheckOptions
) -> tuple[list[Case], tuple[str, ...]]:
    """The case of many steps, or why there is none; neither if time is fixed, or the example is as long."""
    steps = options.long_steps
    example_steps = [maker.example_sizes[name] for name in time.names]
    if steps is not None:
        for name in time.names:
            steps = maker.ranges.get(name, ANY_SIZE).nearest(steps)
    if steps is None or not example_steps or steps <= max(example_steps):
        return [], ()
    try:
        return [maker.long_case(dict.fromkeys(time.names, steps), options.tolerance)], ()
    except ExportError as error:
        return [], (f"{steps} steps: {error}",)


def _report(
    file: OnnxFile,
    plan: Plan,
    results: Sequence[ProviderResult],
    provenance: Provenance,
    *,
    unvaried: tuple[str, ...],
    left_out: tuple[str, ...],
    forms: Mapping[str, float | str],
    rounding: tuple[RoundingCost, ...],
    measured: MeasuredError | None,
) -> Report:
    return Report(
        file=file,
        precision=plan.tolerance.precision,
        providers={result.provider: result.status for result in results},
        comparisons=tuple(itertools.chain.from_iterable(result.comparisons for result in results)),
        unvaried=unvaried,
        left_out=left_out,
        untrimmed=tuple(
            dict.fromkeys(itertools.chain.from_iterable(result.untrimmed for result in results))
        ),
        placement={
            result.provider: result.placement for result in results if result.placement is not None
        },
        over_time=tuple(itertools.chain.from_iterable(result.over_time for result in results)),
        latency={result.provider: result.latency for result in results if result.latency},
        versions=provenance.versions,
        date=provenance.date,
        machine=provenance.machine,
        model=provenance.model,
        tolerance=str(plan.tolerance),
        half_parts=plan.tolerance.half_parts,
        forms=forms,
        rounding=rounding,
        measured=measured,
    )


def _rounding_left_out(reference: Reference) -> tuple[str, ...]:
    """Why the rounding of a program was not measured; empty if it was."""
    if not isinstance(reference.model, Program) or reference.float64_error is None:
        return ()
    return (
        "PyTorch's own rounding, which is taken to be 0: the program does not run in float64 "
        f"({reference.float64_error})",
    )


def _hidden(reference: Reference, file: OnnxFile, outputs: Sequence[str]) -> Sequence[str]:
    """The outputs that are known to be hidden states, not scores of classes: a bare layer's, and those of streams."""
    return outputs if is_layer(reference.model) else list(file.states.values())


def _measured(
    deviations: Sequence[Deviation], max_error: float | ErrorMetric | None
) -> MeasuredError | None:
    """What a measure of the user's own gives on the example, which is the first call."""
    if not isinstance(max_error, ErrorMetric) or not deviations:
        return None
    return max_error.of(deviations[0])
