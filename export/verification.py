"""`verify`: an ONNX file against the PyTorch model that it came from, run for run."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import InferenceSession
from torch import nn

from deploy_rnn.call import Call, on_cpu
from deploy_rnn.comparison import Limits, difference, magnitudes
from deploy_rnn.errors import ExportError, ProviderError, VerificationError
from deploy_rnn.runtime import CPU, CUDA, TensorSpec, has_cuda_device, open_session, placement

from .cases import Case, cases, unvaried
from .report import Comparison, Report

SIZES = (1, 3, 7)
"""What each dynamic axis is set to, beside its size in the example."""


def verify(
    path: str | Path,
    model: nn.Module,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    sizes: Sequence[int] = SIZES,
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
        kwargs: example keyword arguments.
        atol: allowed absolute difference. If neither it nor `rtol` is given: 1e-5 for float32, 1e-9 for float64, of
            an element's magnitude where that is above 1, and at least ten times PyTorch's own distance from float64
            on the same inputs. Other dtypes must be equal.
        rtol: allowed difference as a share of the element's magnitude, beside `atol`.
        sizes: what each dynamic axis is set to, beside its size in the example; whole numbers from 1.

    Returns:
        What was run and how far it differed.

    Raises:
        VerificationError: an output differs; `report` has everything that was run.
        ExportError: the file is not a valid model, or its inputs or outputs are not the model's.
        LoadError: onnxruntime cannot open it.
        ValueError: an `atol`, `rtol` or `sizes` that is out of range.
        FileNotFoundError: there is no such file.

    Warns:
        UserWarning: an example of whole numbers or booleans has one value only, so that no other was checked.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` (={str(path)!r}) is not a file.")
    model, call = on_cpu(model, Call.of(model, args, kwargs))
    return check(path, model, call, Limits(atol, rtol), sizes, shown_as=path)


def check(file: Path, model: nn.Module, call: Call, limits: Limits, sizes: Sequence[int], *, shown_as: Path) -> Report:
    """`verify`, for a file that may still have a temporary name."""
    sizes = _checked(sizes)
    report = _describe(file, shown_as)
    todo = list(cases(model, call, report, sizes))
    report = replace(report, unvaried=unvaried(call, report))
    for name in report.unvaried:
        warnings.warn(
            f"the example of `{name}` has one value all over, so {shown_as.name} is checked with no other; "
            "give an example with the values that it takes.",
            stacklevel=4,
        )
    providers: dict[str, str] = {}
    comparisons: list[Comparison] = []
    for provider in (CPU, CUDA):
        try:
            providers[provider] = _status(file, provider, todo[0])
        except ProviderError as error:
            providers[provider] = f"not checked: {error}"
            continue
        for optimized in (False, True):
            session = open_session(file, provider, optimize=optimized)
            for case in todo:
                comparisons += _compared(session, case, report, limits, provider=provider, optimized=optimized)
    report = replace(report, providers=providers, comparisons=tuple(comparisons))
    if report.failures:
        worst = max(report.failures, key=lambda each: each.used)
        raise VerificationError(f"{shown_as.name} is not the model: {worst}.", report)
    return report


def _checked(sizes: Sequence[int]) -> tuple[int, ...]:
    given = tuple(sizes) if isinstance(sizes, Sequence) else ()
    if not given or not all(isinstance(size, int) and size > 0 for size in given):
        raise ValueError(f"`sizes` (={sizes!r}) must be whole numbers from 1, such as (1, 3, 7).")
    return given


def _status(file: Path, provider: str, case: Case) -> str:
    """Whether the provider can be checked; for CUDA also how many nodes it really ran."""
    if provider == CPU:
        return "checked"
    if not has_cuda_device():
        raise ProviderError("there is no CUDA device.")
    ran = placement(file, provider, case.feeds)
    if provider not in ran:
        raise ProviderError(f"{provider} started but ran none of the nodes.")
    return "checked; it ran " + ", ".join(f"{count} nodes on {where}" for where, count in ran.items())


def _describe(file: Path, shown_as: Path) -> Report:
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{shown_as.name} is not a valid ONNX model: {error}") from error
    proto = onnx.load(str(file), load_external_data=False)
    return Report(
        path=str(shown_as),
        form=next((entry.value for entry in proto.metadata_props if entry.key == "deploy_rnn.form"), None),
        opset=next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")),
        nodes=len(proto.graph.node),
        bytes=file.stat().st_size,
        inputs=tuple(map(_spec, proto.graph.input)),
        outputs=tuple(map(_spec, proto.graph.output)),
        unvaried=(),
        providers={},
        comparisons=(),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = (dim.dim_param or dim.dim_value or None for dim in tensor.shape.dim)
    return TensorSpec.of(value.name, dtype, shape)


def _compared(
    session: InferenceSession, case: Case, report: Report, limits: Limits, *, provider: str, optimized: bool
) -> Iterator[Comparison]:
    """Run one case and compare each output."""
    name = Path(report.path).name
    try:
        results = session.run(None, case.feeds)
    except Exception as error:  # onnxruntime has a dozen types, with no base of their own
        raise ExportError(f"{name} fails on {case.label}: {error}") from error
    for spec, expected, actual in zip(report.outputs, case.expected, results, strict=True):
        if actual.shape != expected.values.shape or actual.dtype != expected.values.dtype:
            raise VerificationError(
                f"{name} is not the model: `{spec.name}` is {actual.dtype}{list(actual.shape)} on {case.label}, "
                f"PyTorch gives {expected.values.dtype}{list(expected.values.shape)}."
            )
        apart, allowed = difference(expected.values, actual), limits.allowed(expected)
        worst, bad = float(apart.max(initial=0)), np.argwhere(apart > allowed)
        at = np.argmax(apart / np.maximum(allowed, np.finfo(float).tiny)) if apart.size else None
        yield Comparison(
            provider=provider,
            optimized=optimized,
            case=case.label,
            output=spec.name,
            max_abs_error=worst,
            max_rel_error=worst / (float(magnitudes(expected.values).max(initial=0)) or 1.0),
            difference=0.0 if at is None else float(apart.flat[at]),
            allowed=0.0 if at is None else float(allowed.flat[at]),
            rounding=expected.rounding,
            first_bad=tuple(map(int, bad[0])) if len(bad) else None,
        )
