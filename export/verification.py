"""`verify`: an ONNX file against the PyTorch model that it came from, run for run."""

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

from .call import Call
from .report import Comparison, Report

# What passes by default, as a share of an output's largest magnitude (absolute below 1). Two right float32 runs of a
# tanh stack over 100 steps differ by 1e-6 (benchmarks/rnn.py); a weight that is off by 1e-3 shows as more than 1e-4.
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}

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
        model: the original; it is run in evaluation mode and left as it was.
        args: example arguments, as for `torch.onnx.export`.
        kwargs: example keyword arguments.
        atol: allowed absolute difference; default 1e-5 for float32, 1e-13 for float64. Other dtypes must be equal.
        rtol: allowed difference as a share of an output's largest magnitude; same default.
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
    return check(path, model, Call.of(model, args, kwargs), Limits(atol, rtol), sizes, shown_as=path)


@dataclass(frozen=True)
class Limits:
    """The differences that pass; None for the default of each output's dtype."""

    atol: float | None = None
    rtol: float | None = None

    def allowed(self, expected: np.ndarray) -> float:
        default = TOLERANCE.get(expected.dtype.name, 0.0)
        atol = default if self.atol is None else self.atol
        rtol = default if self.rtol is None else self.rtol
        return max(atol, rtol * float(np.abs(expected, where=np.isfinite(expected), out=np.zeros(expected.shape)).max(initial=0)))


@dataclass(frozen=True)
class Case:
    """One set of inputs, and what PyTorch makes of it."""

    label: str
    feeds: dict[str, np.ndarray]
    expected: list[np.ndarray]


def check(
    file: Path, model: nn.Module, call: Call, limits: Limits, sizes: Sequence[int], *, shown_as: Path
) -> Report:
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
        drawn = call.with_tensors([
            _draw(tensor, [at.get(size, now) for size, now in zip(spec.shape, tensor.shape, strict=True)], random)
            for tensor, spec in zip(call.tensors, report.inputs, strict=True)
        ])
        yield _case(label, model, drawn, drawn, report)
        # Case 3.
        if takes_h0:
            sequence, h0 = drawn.tensors
            yield _case(
                f"{label}, without h0", model, call.with_tensors([sequence, torch.zeros_like(h0)]),
                Call.of(model, (sequence,)), report,
            )


def _draw(example: Tensor, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Values that the model takes: drawn from the example's own, unless that is a constant float tensor."""
    pool = example.detach().cpu().flatten()
    constant = pool.numel() == 0 or bool((pool == pool[0]).all())
    if constant and example.is_floating_point():
        drawn = torch.randn(list(shape), generator=random, dtype=torch.float64).to(example.dtype)
    else:
        drawn = pool[torch.randint(pool.numel(), list(shape), generator=random)]
    return drawn.to(example.device)


def _case(label: str, model: nn.Module, fed: Call, asked: Call, report: Report) -> Case:
    try:
        expected = [output.cpu().numpy() for output in asked.run(model)]
    except Exception as error:
        raise ExportError(
            f"the PyTorch model itself fails on {label}: {type(error).__name__}: {error}. "
            "If it cannot take that size, give the `sizes` that it can."
        ) from error
    if len(expected) != len(report.outputs):
        raise ExportError(f"the file has {len(report.outputs)} outputs, the model gives {len(expected)} tensors.")
    names = [spec.name for spec in report.inputs]
    return Case(label, dict(zip(names, (t.detach().cpu().numpy() for t in fed.tensors), strict=True)), expected)


def _run(
    file: Path, provider: str, optimized: bool, cases: Sequence[Case], report: Report, limits: Limits
) -> Iterator[Comparison]:
    session = open_session(file, provider, optimize=optimized)
    for case in cases:
        for spec, expected, actual in zip(report.outputs, case.expected, session.run(None, case.feeds), strict=True):
            if actual.shape != expected.shape or actual.dtype != expected.dtype:
                raise VerificationError(
                    f"`{spec.name}` is {actual.dtype}{list(actual.shape)} on {case.label}, "
                    f"the model gives {expected.dtype}{list(expected.shape)}."
                )
            difference = _difference(expected, actual)
            allowed = limits.allowed(expected)
            worst = float(difference.max(initial=0))
            magnitude = float(np.abs(expected.astype(np.float64)).max(initial=0))
            bad = np.argwhere(difference > allowed)
            yield Comparison(
                provider, optimized, case.label, spec.name, worst,
                worst / magnitude if magnitude else worst,
                allowed, tuple(map(int, bad[0])) if len(bad) else None,
            )


def _difference(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """|expected - actual|, where an infinity or NaN equals itself and differs infinitely from all else."""
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    return np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf))
