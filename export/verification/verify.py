"""`verify`: an ONNX file against the PyTorch model that it came from, output by output."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn
from torch.export import ExportedProgram

from deploy_rnn.checking.branches import Condition
from deploy_rnn.checking.example_call import ExampleCall, on_cpu
from deploy_rnn.checking.program import Program, runnable
from deploy_rnn.checking.tolerance import Tolerance, model_precision
from deploy_rnn.checking.trials import SIZES, Reference
from deploy_rnn.checking.two_calls import check_two_calls
from deploy_rnn.errors import DynamicAxisError, ExportError, LoadError, VerificationError
from deploy_rnn.model_errors import warn_user
from deploy_rnn.runtime import PROVIDERS
from deploy_rnn.tensor_spec import ANY_SIZE

from ..bare_layer import is_layer, layer_names, with_lengths
from ..onnx_file import OnnxFile
from ..precision.cost import Deviation, RoundingCost, rounding_costs
from ..precision.metric import ErrorMetric, MeasuredError
from ..precision.reference import Int8Reference, RoundedReference, reference_of
from ..runtimes.faults import refuse_wrong
from ..runtimes.opened import Source
from ..runtimes.table import ONNXRUNTIME, runtime_named
from .cases import Case, CaseMaker
from .int8_integers import integer_faults
from .on_onnxruntime import run_on
from .on_runtime import run_in
from .pairing import paired
from .provenance import Provenance
from .relations import related
from .report import Comparison, Report
from .runs import Plan, ProviderResult
from .time_axes import TimeAxes, time_axes

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


def verify(
    path: str | Path,
    model: nn.Module | ExportedProgram,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    input_names: Sequence[str | None] | None = None,
    output_names: Sequence[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    sizes: Sequence[int] = SIZES,
    long_steps: int | None = LONG_STEPS,
    require_provider: str | None = None,
    runtime: str = ONNXRUNTIME,
) -> Report:
    """Check an ONNX file against `model` in onnxruntime, or in another runtime.

    The file must pass `onnx.checker` with full check. It then runs on the CPU, and on a CUDA device if there is one,
    with onnxruntime's graph optimisations off and on:

    1. on the example itself;
    2. for every size of the dynamic axes, within the range of each, and at its ends, on inputs drawn at random from the
       example's values (a constant float tensor gets normal noise instead);
    3. a bare recurrent layer with states also on zeros, against PyTorch without them;
    4. a streaming file also on sequences in chunks, against PyTorch on the whole.

    Args:
        path: the .onnx file.
        model: the original, on any device; it is run on the CPU, in evaluation mode, and left as it was. It may be a
            TorchScript module or an `ExportedProgram`, too: at sizes that this refuses, the file is not checked, and
            where it names float32, so that it cannot run in float64, PyTorch's rounding is taken to be 0. The report's
            `left_out` says both.
        args: example arguments, as for `torch.onnx.export`.
        kwargs: example keyword arguments, `lengths` too, as for `export_onnx`.
        input_names: the file's name for each tensor of the example, in the order of the parameters of `forward`; None
            for a tensor that the file does not take. Default: a file of others whose inputs have the names of the
            parameters (of a bare layer: input, h0, c0, lengths) is paired by these, any other in order.
        output_names: the file's name for each tensor that the model returns. Default: the same.
        atol: allowed absolute difference. If neither it nor `rtol` is given: 1e-5 if the model has any weights in
            float32, 1e-9 if all are float64, of an element's magnitude where that is above 1, and at least ten times
            PyTorch's own distance from float64 on the same inputs; 2e-2 if parts of it compute in float16, 5e-2 in
            bfloat16. Whole numbers and booleans must be equal.
        rtol: allowed difference as a share of the element's magnitude, in addition to `atol`.
        sizes: the sizes that each dynamic axis is checked with, besides its size in the example; whole numbers from 1.
            For one that the model refuses, another is tried; the report's `left_out` says so.
        long_steps: the steps of one more case, if the time axis is dynamic and the model takes that many; None for no
            such case.
        require_provider: an onnxruntime execution provider that must run every node; without it, nodes that a provider
            lacks run on the CPU. Nodes that only compute sizes are left to onnxruntime, which prefers the CPU.
        runtime: where the file runs: "onnxruntime", "openvino", "openvino-static", "onnxruntime-web" (in node),
            "onnxruntime-web-chromium", "opencv", "mnn", "tract", "tvm" or "ncnn" (docs/providers.md). All but the first
            run the same cases in their own process;
            a file that one of them is known to get wrong is refused without a run.

    Returns:
        What was run and how far it differed.

    Raises:
        VerificationError: an output differs; `report` has everything that was run.
        ExportError: the file is not a valid model, or its inputs or outputs are not the model's; or the model fails on
            the example, or gives other numbers when it is called again.
        LoadError: onnxruntime cannot open it, or deploy-rnn's metadata in it is damaged.
        RuntimeMissingError: `runtime` is not installed; the error says what to install.
        RunError: `runtime` does not start.
        ProviderError: `require_provider` is missing, does not start, or left nodes to another.
        ValueError: an `atol`, `rtol`, `sizes` or `long_steps` that is out of range, or an unknown `runtime`.
        FileNotFoundError: `path` is not a file.

    Warns:
        UserWarning: an example of whole numbers or booleans has one value only, so that no other was checked.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(
            f"`path` (={str(path)!r}) is a folder; give an .onnx file, such as one of a bundle."
        )
    if not path.is_file():
        raise FileNotFoundError(f"`path` (={str(path)!r}) is not a file.")
    model = runnable(model)
    file = read_valid(path, path)
    precision = file.precision or model_precision(model)
    options = CheckOptions(
        Tolerance(atol, rtol, precision), sizes, long_steps, require_provider, (runtime,)
    )
    reference, call = prepared(model, args, kwargs, precision, file.int8_layers)

    def pair(file: OnnxFile) -> OnnxFile:
        own_input_names, own_output_names = _own_names(reference.model, call)
        return paired(
            file,
            call,
            input_names=input_names,
            output_names=output_names,
            own_input_names=own_input_names,
            own_output_names=own_output_names,
        )

    return check(path, reference, call, options, shown_as=path, read_file=file, pair=pair)


def prepared(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    precision: str,
    int8_layers: Sequence[str] = (),
) -> tuple[Reference, ExampleCall]:
    """Return the model and its example call as files in a precision are compared with them, on the CPU.

    Raises:
        ExportError: the model fails on the example, or gives other numbers when it is called again.
    """
    model = with_lengths(model, kwargs)
    model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
    reference = reference_of(model, precision, int8_layers)
    check_two_calls(reference.model, call)
    return reference, call


def _own_names(model: nn.Module, call: ExampleCall) -> tuple[list[str], list[str]]:
    """The names of the tensors that the model takes and returns, such as a file of deploy-rnn would have them."""
    if is_layer(model):
        return layer_names(model, call)
    return call.input_names, call.output_names(model)


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
    """
    original = read_file or read_valid(path, shown_as)
    _refuse_bfloat16(original)
    for name in options.runtimes:
        if name != ONNXRUNTIME:
            refuse_wrong(original, name)
    half = reference.half_precision(call)
    options = replace(options, tolerance=options.tolerance.with_half(half))
    input_names = {spec.name for spec in original.inputs}
    file = related(pair(original), reference, call, input_names)
    maker = CaseMaker(reference, call, file, conditions)
    cases = list(maker.cases(options.sizes))
    if axis_advice is not None:
        for name, reason in maker.unchanged.items():
            reason = f"axis {name} cannot be dynamic: {reason}"
            raise DynamicAxisError(f"{reason}. {axis_advice}", reason, name)
    for name in maker.unvaried:
        warn_user(
            f"the example of `{name}` has one value all over, so {file.name} is checked with no other; "
            "give an example with the values that it takes."
        )
    time = time_axes(reference, call, file)
    long_cases, long_left_out = _long_cases(maker, time, options)
    plan = Plan(
        path=path,
        file=file,
        cases=[*cases, *long_cases],
        timed=[cases[0], *long_cases],
        tolerance=options.tolerance,
        time_axes=time.outputs,
        required=options.require_provider,
        branches=maker.branches,
    )
    providers = []
    if ONNXRUNTIME in options.runtimes:
        providers += [name for name, entry in PROVIDERS.items() if entry.checks_exports]
    if options.require_provider is not None and options.require_provider not in providers:
        providers.append(options.require_provider)
    source = replace(Source.of(path, original), outputs=[spec.name for spec in file.outputs])
    try:
        results = [run_on(provider, plan) for provider in providers]
        for name in options.runtimes:
            if name != ONNXRUNTIME:
                results.append(run_in(runtime_named(name), plan, source))
    except LoadError as error:
        lacking = lacking_operator(error, half)
        if lacking:
            kind = LoadError if axis_advice is None else ExportError
            raise kind(lacking) from error
        # The file may still have a temporary name.
        raise LoadError(str(error).replace(str(path), str(shown_as))) from error
    output_names = [spec.name for spec in original.outputs]
    deviations: Sequence[Deviation] = ()
    if isinstance(reference, RoundedReference):
        deviations = reference.taken_deviations()
    report = _report(
        original,
        plan,
        results,
        Provenance.of(reference.model),
        unvaried=maker.unvaried,
        left_out=(*maker.untried, *long_left_out, *_rounding_left_out(reference)),
        forms=forms or {},
        rounding=rounding_costs(
            deviations, output_names, time.outputs, _hidden(reference, original, output_names)
        ),
        measured=_measured(deviations, options.max_error),
    )
    if isinstance(reference, Int8Reference):
        for fault in integer_faults(path, reference.weights):
            raise VerificationError(f"{file.name} is not the model: {fault}.", report)
    if report.failures:
        worst = _worst(report)
        advice = plan.advice(worst.case)
        message = f"{file.name} is not the model: {_describe_failure(report, worst)}.{advice}"
        raise VerificationError(message, report)
    _check_cost(report, options.max_error)
    return report


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


def _check_cost(report: Report, max_error: float | ErrorMetric | None) -> None:
    """Raises: VerificationError: rounding costs more than it may."""
    if isinstance(max_error, ErrorMetric):
        measured = report.measured
        if measured is not None and measured.value > measured.limit:
            raise VerificationError(
                f"{report.file.name} is right, but {report.precision} costs too much in `max_error`: {measured}; allow "
                "more, or leave out `precision`.",
                report,
            )
        return
    costs = [cost for cost in report.rounding if max_error is not None and cost.largest > max_error]
    if costs:
        worst = max(costs, key=lambda cost: cost.largest)
        raise VerificationError(
            f"{report.file.name} is right, but {report.precision} moves `{worst.output}` by {worst.largest:.1e} "
            f"({worst.case}), more than `max_error` (={max_error:g}); allow more, or leave out `precision`.",
            report,
        )


def read_valid(path: Path, shown_as: Path) -> OnnxFile:
    """Read a file, which may still have a temporary name.

    Raises:
        ExportError: it is not a valid ONNX model.
        LoadError: deploy-rnn's metadata in it is damaged.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        # The file may still have a temporary name.
        reason = str(error).strip().replace(str(path), shown_as.name)
        raise ExportError(f"{shown_as.name} is not a valid ONNX model: {reason}") from error
    except (
        UnicodeDecodeError
    ) as error:  # onnx decodes its own message, which has a name of the file in it
        raise ExportError(
            f"{shown_as.name} is not a valid ONNX model: a name in it is not UTF-8."
        ) from error
    return OnnxFile.read(path, shown_as=shown_as)


def _refuse_bfloat16(file: OnnxFile) -> None:
    for spec in (*file.inputs, *file.outputs):
        if spec.dtype == "bfloat16":
            what = "take" if spec in file.inputs else "return"
            raise ExportError(
                f"`{spec.name}` is bfloat16, which numpy lacks, and so onnxruntime in Python: let `forward` {what} "
                "float32."
            )


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


def _rounding_left_out(reference: Reference) -> tuple[str, ...]:
    """Why the rounding of a program was not measured; empty if it was."""
    if not isinstance(reference.model, Program) or reference.float64_error is None:
        return ()
    return (
        "PyTorch's own rounding, which is taken to be 0: the program does not run in float64 "
        f"({reference.float64_error})",
    )


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


def _worst(report: Report) -> Comparison:
    return max(report.failures, key=lambda comparison: comparison.used)


def _describe_failure(report: Report, worst: Comparison) -> str:
    """The worst failure; if that output has no time axis, also from which step another is wrong in the same run."""
    parts = [str(worst)]
    if worst.first_bad_step is None:
        run = (worst.provider, worst.optimized, worst.case)
        for failure in report.failures:
            same_run = (failure.provider, failure.optimized, failure.case) == run
            if same_run and failure.first_bad_step is not None:
                parts.append(
                    f"`{failure.output}` from time step {failure.first_bad_step} (the first is 0)"
                )
    return "; ".join(parts)
