"""`verify`: an ONNX file against the PyTorch model that it came from, run for run."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from deploy_rnn.errors import ExportError, ProviderError, VerificationError
from deploy_rnn.rnn import RNN
from deploy_rnn.runtime import CPU, CUDA, TensorSpec, open_session, placement

from .call import Call, on_cpu
from .report import Comparison, Report

# What passes by default, as a share of an output's largest magnitude (absolute below 1).
TOLERANCE = {"float32": 1e-5, "float64": 1e-9}

# A trained network can amplify rounding: the highlighter's scores differ by up to 4e-5 of the largest between float32
# and float64, a hundred times the median (docs/verification.md). Two right float32 runs then differ by a few times
# PyTorch's own distance from float64, which is measured on the same inputs. Up to ROUNDING_LIMIT only: beyond that the
# comparison would say nothing.
ROUNDING_MARGIN = 10.0
ROUNDING_LIMIT = 1e-2

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
    recurrent layer with h_0 also with zeros, against PyTorch without h_0.

    Args:
        path: the .onnx file.
        model: the original, on any device; it is run on the CPU, in evaluation mode, and left as it was.
        args: example arguments, as for `torch.onnx.export`.
        kwargs: example keyword arguments.
        atol: allowed absolute difference. If neither it nor `rtol` is given: 1e-5 for float32, 1e-9 for float64, of
            an output's largest magnitude where that is above 1, and for float32 at least ten times PyTorch's own
            distance from float64 on the same inputs. Other dtypes must be equal.
        rtol: allowed difference as a share of an output's largest magnitude.
        sizes: what each dynamic axis is set to, beside its size in the example.

    Returns:
        What was run and how far it differed.

    Raises:
        VerificationError: an output differs; `report` has everything that was run.
        ExportError: the file is not a valid model, or its inputs or outputs are not the model's.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` (={str(path)!r}) is not a file.")
    model, call = on_cpu(model, Call.of(model, args, kwargs))
    return check(path, model, call, Limits(atol, rtol), sizes, shown_as=path)


@dataclass(frozen=True)
class Limits:
    """The differences that pass; None for the default of each output's dtype."""

    atol: float | None = None
    rtol: float | None = None

    def allowed(self, expected: "Expected") -> float:
        """The largest absolute difference from `expected` that passes."""
        default = TOLERANCE.get(expected.values.dtype.name, 0.0)
        if self.atol is None and self.rtol is None:
            rounding = min(ROUNDING_MARGIN * expected.rounding, ROUNDING_LIMIT * expected.magnitude)
            return max(default, default * expected.magnitude, rounding)
        return max(self.atol or 0.0, (self.rtol or 0.0) * expected.magnitude)


@dataclass(frozen=True)
class Expected:
    """One output of PyTorch, and how far rounding alone may have moved it.

    Attributes:
        values: the output.
        magnitude: its largest finite magnitude.
        rounding: largest difference from the same model in float64; 0 where that could not be run.
    """

    values: np.ndarray
    magnitude: float
    rounding: float


@dataclass(frozen=True)
class Case:
    """One set of inputs, and what PyTorch makes of it."""

    label: str
    feeds: dict[str, np.ndarray]
    expected: list[Expected]


def check(file: Path, model: nn.Module, call: Call, limits: Limits, sizes: Sequence[int], *, shown_as: Path) -> Report:
    """`verify`, for a file that may still have a temporary name."""
    report = _describe(file, shown_as)
    cases = list(_cases(model, call, report, sizes))
    providers: dict[str, str] = {}
    comparisons: list[Comparison] = []
    for provider in (CPU, CUDA):
        try:
            _require(provider)
            for optimized in (False, True):
                comparisons += _run(file, provider, optimized, cases, report, limits)
            providers[provider] = "checked" if provider == CPU else _placed(file, provider, cases[0])
        except ProviderError as error:
            providers[provider] = f"not checked: {error}"
    report = replace(report, providers=providers, comparisons=tuple(comparisons))
    if report.failures:
        worst = max(report.failures, key=lambda each: each.max_abs_error)
        raise VerificationError(f"{shown_as.name} is not the model: {worst}.", report)
    return report


def _require(provider: str) -> None:
    if provider == CUDA and not torch.cuda.is_available():
        raise ProviderError("PyTorch sees no CUDA device.")


def _placed(file: Path, provider: str, case: Case) -> str:
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
        opset=next(entry.version for entry in proto.opset_import if not entry.domain),
        nodes=len(proto.graph.node),
        bytes=file.stat().st_size,
        inputs=tuple(map(_spec, proto.graph.input)),
        outputs=tuple(map(_spec, proto.graph.output)),
        providers={},
        comparisons=(),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, dtype, tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim))


def _cases(model: nn.Module, call: Call, report: Report, sizes: Sequence[int]) -> Iterator[Case]:
    """1. The example itself.
    2. Random inputs, for every size of the dynamic axes.
    3. A bare layer that takes h_0: zeros, against PyTorch without h_0."""
    if len(call.tensors) != len(report.inputs):
        raise ExportError(
            f"the file has {len(report.inputs)} inputs ({', '.join(spec.name for spec in report.inputs)}), "
            f"the example has {len(call.tensors)} tensors."
        )
    random = torch.Generator().manual_seed(0)
    symbols = list(dict.fromkeys(size for spec in report.inputs for size in spec.shape if isinstance(size, str)))
    takes_h0 = isinstance(model, (nn.RNN, RNN)) and len(call.tensors) == 2
    # Case 1.
    yield _case("example", model, call, call, report)
    for turn in range(len(sizes) if symbols else 1):
        at = {symbol: sizes[(turn + number) % len(sizes)] for number, symbol in enumerate(symbols)}
        label = ", ".join(["random", *(f"{symbol}={size}" for symbol, size in at.items())])
        # Case 2.
        drawn = call.with_tensors(
            [
                _draw(
                    tensor, [at.get(str(size), now) for size, now in zip(spec.shape, tensor.shape, strict=True)], random
                )
                for tensor, spec in zip(call.tensors, report.inputs, strict=True)
            ]
        )
        yield _case(label, model, drawn, drawn, report)
        # Case 3.
        if takes_h0:
            sequence, h0 = drawn.tensors
            yield _case(
                f"{label}, without h0",
                model,
                call.with_tensors([sequence, torch.zeros_like(h0)]),
                Call.of(model, (sequence,)),
                report,
            )


def _draw(example: Tensor, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Values that the model takes: drawn from the example's own, unless that is a constant float tensor."""
    pool = example.detach().flatten()
    constant = pool.numel() == 0 or bool((pool == pool[0]).all())
    if constant and example.is_floating_point():
        return torch.randn(list(shape), generator=random, dtype=torch.float64).to(example.dtype)
    return pool[torch.randint(pool.numel(), list(shape), generator=random)]


def _case(label: str, model: nn.Module, fed: Call, asked: Call, report: Report) -> Case:
    try:
        outputs = [output.numpy() for output in asked.run(model)]
    except Exception as error:
        raise ExportError(
            f"the PyTorch model itself fails on {label}: {type(error).__name__}: {error}. "
            "If it cannot take that size, give the `sizes` that it can."
        ) from error
    if len(outputs) != len(report.outputs):
        raise ExportError(f"the file has {len(report.outputs)} outputs, the model gives {len(outputs)} tensors.")
    names = [spec.name for spec in report.inputs]
    feeds = dict(zip(names, (tensor.detach().numpy() for tensor in fed.tensors), strict=True))
    exact = _in_float64(model, asked) or outputs
    return Case(label, feeds, [_expected(*each) for each in zip(outputs, exact, strict=True)])


def _in_float64(model: nn.Module, call: Call) -> list[np.ndarray] | None:
    """The outputs of the same model in float64; None if it does not run so, having a dtype written into its code."""
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in call.tensors]
    try:
        return [output.numpy() for output in call.with_tensors(wide).run(copy.deepcopy(model).double())]
    except Exception:  # whatever the model's own code raises
        return None


def _expected(values: np.ndarray, exact: np.ndarray) -> Expected:
    finite = np.isfinite(values)
    if values.size and not finite.any():
        raise ExportError("an output of the PyTorch model has no finite value: there is nothing to compare.")
    magnitude = float(np.abs(values[finite].astype(np.float64)).max(initial=0))
    rounding = _difference(exact, values) if np.issubdtype(values.dtype, np.floating) else np.zeros(1)
    return Expected(values, magnitude, float(rounding[np.isfinite(rounding)].max(initial=0)))


def _run(
    file: Path, provider: str, optimized: bool, cases: Sequence[Case], report: Report, limits: Limits
) -> Iterator[Comparison]:
    session = open_session(file, provider, optimize=optimized)
    for case in cases:
        try:
            results = session.run(None, case.feeds)
        except Exception as error:  # onnxruntime has a dozen types, with no base of their own
            raise ExportError(f"{Path(report.path).name} fails on {case.label}: {error}") from error
        for spec, expected, actual in zip(report.outputs, case.expected, results, strict=True):
            if actual.shape != expected.values.shape or actual.dtype != expected.values.dtype:
                raise VerificationError(
                    f"`{spec.name}` is {actual.dtype}{list(actual.shape)} on {case.label}, "
                    f"the model gives {expected.values.dtype}{list(expected.values.shape)}."
                )
            difference, allowed = _difference(expected.values, actual), limits.allowed(expected)
            worst = float(difference.max(initial=0))
            bad = np.argwhere(difference > allowed)
            yield Comparison(
                provider=provider,
                optimized=optimized,
                case=case.label,
                output=spec.name,
                max_abs_error=worst,
                max_rel_error=worst / expected.magnitude if expected.magnitude else worst,
                allowed=allowed,
                rounding=expected.rounding,
                first_bad=tuple(map(int, bad[0])) if len(bad) else None,
            )


def _difference(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """|expected - actual|, where an infinity or NaN equals itself and differs infinitely from all else."""
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    return np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf))
