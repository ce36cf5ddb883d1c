"""`verify`: an ONNX file against the PyTorch model that it came from, run for run."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import nn

from deploy_rnn.checking.example_call import ExampleCall, on_cpu
from deploy_rnn.checking.tolerance import Tolerance
from deploy_rnn.checking.trials import SIZES
from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.runtime import PROVIDERS, TensorSpec

from ..bare_layer import with_lengths
from ..metadata import FileMetadata
from .cases import Case, cases, example_sizes, long_case, unvaried
from .report import Report
from .runs import Plan, run_on
from .time_axes import Time, time_axes

LONG_STEPS = 200
"""The steps of one more case, where time is dynamic: enough to see an error that grows with them."""


def verify(
    path: str | Path,
    model: nn.Module,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    sizes: Sequence[int] = SIZES,
    long_steps: int | None = LONG_STEPS,
    require_provider: str | None = None,
) -> Report:
    """Check an ONNX file against `model` in onnxruntime.

    The file must pass `onnx.checker` with full check. It then runs on the CPU, and on CUDA where there is one, with
    onnxruntime's graph optimisations off and on: on the example itself, then for every size of the dynamic axes on
    inputs drawn at random from the example's values (a constant float tensor gets normal noise instead); a bare
    recurrent layer with states also with zeros, against PyTorch without them.

    Args:
        path: the .onnx file.
        model: the original, on any device; it is run on the CPU, in evaluation mode, and left as it was.
        args: example arguments, as for `torch.onnx.export`.
        kwargs: example keyword arguments, `lengths` too, as for `export_onnx`.
        atol: allowed absolute difference. If neither it nor `rtol` is given: 1e-5 for float32, 1e-9 for float64, of
            an element's magnitude where that is above 1, and at least ten times PyTorch's own distance from float64
            on the same inputs. Other dtypes must be equal.
        rtol: allowed difference as a share of the element's magnitude, beside `atol`.
        sizes: what each dynamic axis is set to, beside its size in the example; whole numbers from 1.
        long_steps: the steps of one more case, if the time axis is dynamic and the model takes that many; None for no
            such case.
        require_provider: an onnxruntime execution provider that must run every node; without it, what a provider
            lacks runs on the CPU. Nodes that only compute sizes are left to onnxruntime, which prefers the CPU.

    Returns:
        What was run and how far it differed.

    Raises:
        VerificationError: an output differs; `report` has everything that was run.
        ExportError: the file is not a valid model, or its inputs or outputs are not the model's.
        LoadError: onnxruntime cannot open it.
        ProviderError: `require_provider` is missing, does not start, or left nodes to another.
        ValueError: an `atol`, `rtol`, `sizes` or `long_steps` that is out of range.
        FileNotFoundError: there is no such file.

    Warns:
        UserWarning: an example of whole numbers or booleans has one value only, so that no other was checked.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` (={str(path)!r}) is not a file.")
    model = with_lengths(model, kwargs)
    model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
    limits = Tolerance(atol, rtol)
    return check(
        path, model, call, limits, sizes, shown_as=path, long_steps=long_steps, require_provider=require_provider
    )


def check(
    file: Path,
    model: nn.Module,
    call: ExampleCall,
    limits: Tolerance,
    sizes: Sequence[int],
    *,
    shown_as: Path,
    long_steps: int | None = LONG_STEPS,
    require_provider: str | None = None,
) -> Report:
    """`verify`, for a file that may still have a temporary name."""
    sizes = _checked(sizes, long_steps)
    report = _describe(file, shown_as)
    todo = list(cases(model, call, report, sizes))
    report = replace(report, unvaried=unvaried(call, report))
    for name in report.unvaried:
        warnings.warn(
            f"the example of `{name}` has one value all over, so {shown_as.name} is checked with no other; "
            "give an example with the values that it takes.",
            stacklevel=4,
        )
    time = time_axes(model, call, report)
    long, left_out = _long(model, call, report, time, long_steps)
    report = replace(report, left_out=left_out)
    plan = Plan(file, [*todo, *long], limits, time.axes, timed=[todo[0], *long], required=require_provider)
    for provider in dict.fromkeys([*PROVIDERS, *filter(None, [require_provider])]):
        report = run_on(provider, plan, report)
    if report.failures:
        raise VerificationError(f"{shown_as.name} is not the model: {_describe_failure(report)}.", report)
    return report


def _long(
    model: nn.Module, call: ExampleCall, report: Report, time: Time, steps: int | None
) -> tuple[list[Case], tuple[str, ...]]:
    """The case of many steps, or why there is none; neither where time is fixed, or as long in the example."""
    present = example_sizes(call, report)
    if steps is None or steps <= max((present[name] for name in time.names), default=steps):
        return [], ()
    at = dict.fromkeys(time.names, steps)
    try:
        return [long_case(model, call, report, at)], ()
    except ExportError as error:
        return [], (f"{steps} steps: {error}",)


def _describe_failure(report: Report) -> str:
    """The worst failure; if that output has no time axis, also from which step another is wrong in the same run."""
    worst = max(report.failures, key=lambda each: each.used)
    run = (worst.provider, worst.optimized, worst.case)
    steps = [
        f"`{each.output}` from time step {each.first_bad_step} (the first is 0)"
        for each in report.failures
        if (each.provider, each.optimized, each.case) == run and each.first_bad_step is not None
    ]
    return "; ".join([str(worst), *(steps if worst.first_bad_step is None else [])])


def _checked(sizes: Sequence[int], long_steps: int | None) -> tuple[int, ...]:
    given = tuple(sizes) if isinstance(sizes, Sequence) else ()
    if not given or not all(isinstance(size, int) and size > 0 for size in given):
        raise ValueError(f"`sizes` (={sizes!r}) must be whole numbers from 1, such as (1, 3, 7).")
    if long_steps is not None and (not isinstance(long_steps, int) or long_steps < 1):
        raise ValueError(f"`long_steps` (={long_steps!r}) must be a whole number from 1, or None for no such case.")
    return given


def _describe(file: Path, shown_as: Path) -> Report:
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{shown_as.name} is not a valid ONNX model: {error}") from error
    proto = onnx.load(str(file), load_external_data=False)
    metadata = FileMetadata.of({entry.key: entry.value for entry in proto.metadata_props})
    return Report(
        path=str(shown_as),
        form=metadata.form,
        opset=next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")),
        nodes=len(proto.graph.node),
        bytes=file.stat().st_size,
        inputs=tuple(map(_spec, proto.graph.input)),
        outputs=tuple(map(_spec, proto.graph.output)),
        lengths=metadata.lengths,
        states=metadata.states,
        time=metadata.time,
        unvaried=(),
        providers={},
        comparisons=(),
        op_types=dict(Counter(_op_types(proto.graph)).most_common()),
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    )


def _op_types(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _op_types(attribute.g)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = (dim.dim_param or dim.dim_value or None for dim in tensor.shape.dim)
    return TensorSpec.of(value.name, dtype, shape)
