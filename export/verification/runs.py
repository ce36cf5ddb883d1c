"""The cases of a file in one opened session of any runtime: how far each output is from PyTorch's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from deploy_rnn.checking.tolerance import Expected, Tolerance, difference, magnitudes
from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.timing import compare

from ..onnx_file import OnnxFile
from .cases import IN_CHUNKS, Case, Run
from .report import Comparison, ErrorOverTime, Placement

# Seconds for the timing of one case, since it is part of every export.
TIMING = 0.05

_TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class Plan:
    """What is run on every execution provider.

    Attributes:
        path: where the .onnx file is now.
        file: what the file is, under the name that it will have.
        cases: what it is run on; the first is the example.
        timed: which of `cases` are timed.
        tolerance: how much may differ.
        time_axes: for each output with a time axis, which of its axes that is.
        required: the provider that must run every node, if any.
        branches: label of a case whose sizes take another branch of the model than the file has -> that of the file.
    """

    path: Path
    file: OnnxFile
    cases: Sequence[Case]
    timed: Sequence[Case]
    tolerance: Tolerance
    time_axes: Mapping[str, int]
    required: str | None = None
    branches: Mapping[str, str] = field(default_factory=dict)

    def advice(self, case: str) -> str:
        """What to add to the error of a case: empty unless it is in chunks, or beyond a branch."""
        if case.startswith(IN_CHUNKS):
            return (
                " A chunk is not enough for what the model computes around its recurrent layers, such as a convolution "
                "or a mean over the steps, or for states that come back in another order: export without `streaming`, "
                "or export the recurrent part by itself."
            )
        if case not in self.branches:
            return ""
        return (
            f" The model branches on a size, and the file has the side where {self.branches[case]}: let it compute the "
            "same on both sides, or name in `dynamic_shapes` the axes that can be dynamic, without this one."
        )


@dataclass(frozen=True)
class ProviderResult:
    """What one execution provider did.

    Attributes:
        provider: its name.
        status: "checked", or why it was not.
        comparisons: every output of every run.
        over_time: the error at each step.
        latency: case -> milliseconds.
        placement: where the nodes ran; None if the provider was not checked, or the runtime does not say.
        untrimmed: the outputs that had the steps beyond the longest row.
    """

    provider: str
    status: str
    comparisons: Sequence[Comparison] = ()
    over_time: Sequence[ErrorOverTime] = ()
    latency: Mapping[str, float] = field(default_factory=dict)
    placement: Placement | None = None
    untrimmed: Sequence[str] = ()


class Session:
    """A file opened on one provider; collects a comparison for each output of each run.

    Args:
        run: runs the file.
        provider: where, for the report.
        plan: what is run.
        optimized: whether the runtime's graph optimisations are on, for the report.

    Attributes:
        comparisons: of all runs so far.
        over_time: the error at each step, of all runs so far.
        untrimmed: the outputs that had the steps beyond the longest row in some run.
    """

    def __init__(self, run: Run, provider: str, plan: Plan, *, optimized: bool) -> None:
        self.comparisons: list[Comparison] = []
        self.over_time: list[ErrorOverTime] = []
        self.untrimmed: dict[str, None] = {}
        self._run = run
        self._provider = provider
        self._plan = plan
        self._optimized = optimized

    def check(self, case: Case) -> None:
        """Run one case and compare each output.

        Raises:
            ExportError: the run fails.
            VerificationError: an output of another dtype or shape.
        """
        name = self._plan.file.name
        try:
            outputs = case.outputs(self._run)
        except Exception as error:  # onnxruntime has a dozen types without a common base
            advice = self._plan.advice(case.label)
            raise ExportError(f"{name} fails on {case.label}: {error}{advice}") from error
        # A streaming file has more outputs than the model: its states.
        for spec, expected, actual in zip(
            self._plan.file.outputs, case.expected, outputs, strict=False
        ):
            if actual.shape != expected.values.shape:
                actual = self._trimmed(spec.name, expected.values.shape, actual)
            if actual.shape != expected.values.shape or actual.dtype != expected.values.dtype:
                raise VerificationError(
                    f"{name} is not the model: `{spec.name}` is {actual.dtype}{list(actual.shape)} on "
                    f"{case.label}, PyTorch gives {expected.values.dtype}{list(expected.values.shape)}."
                    f"{self._plan.advice(case.label)}"
                )
            self._compare(case.label, spec.name, expected, actual)

    def _trimmed(self, output: str, shape: tuple[int, ...], actual: np.ndarray) -> np.ndarray:
        """An output without the steps beyond the longest row, if it differs from `shape` in nothing else.

        `pad_packed_sequence` leaves these steps out, and so does a file of deploy-rnn; files of others have them.
        """
        file = self._plan.file
        time = self._plan.time_axes.get(output)
        if file.form is not None or not file.lengths or time is None or time >= actual.ndim:
            return actual
        trimmed = actual[(slice(None),) * time + (slice(shape[time]),)]
        if trimmed.shape != shape:
            return actual
        self.untrimmed[output] = None
        return trimmed

    def milliseconds(self, case: Case) -> float:
        """Time one run, inputs and outputs in the CPU's memory: the median of as many runs as fit into `TIMING`."""
        run = {"": partial(self._run, case.feeds)}

        def median(calls: int) -> float:
            return compare(run, rounds=1, calls=calls, warm_up=0, pause=0)[""].median

        first = median(2)
        calls = min(int(TIMING / first), 50)
        seconds = median(calls) if calls > 2 else first
        return 1000 * seconds

    def _compare(self, case: str, output: str, expected: Expected, actual: np.ndarray) -> None:
        errors = difference(expected.values, actual)
        allowed = self._plan.tolerance.allowed(expected)
        time = self._plan.time_axes.get(output)
        if time is not None and time >= errors.ndim:
            time = None  # `.squeeze()` has dropped an axis of size 1
        # Of one step, the differences from step to step are none.
        if time is not None and errors.size:
            self.over_time.append(_over_time(case, output, time, errors, allowed))
        max_abs_error = float(errors.max(initial=0))
        largest_magnitude = float(magnitudes(expected.values).max(initial=0))
        nearest_error, nearest_limit = _nearest_limit(errors, allowed)
        first_bad = _first_bad(errors, allowed, time)
        first_bad_step = None
        if first_bad is not None and time is not None:
            first_bad_step = first_bad[time]
        comparison = Comparison(
            provider=self._provider,
            optimized=self._optimized,
            case=case,
            output=output,
            max_abs_error=max_abs_error,
            max_rel_error=max_abs_error / (largest_magnitude or 1.0),
            difference=nearest_error,
            allowed=nearest_limit,
            rounding=expected.rounding,
            first_bad=first_bad,
            first_bad_step=first_bad_step,
        )
        self.comparisons.append(comparison)


def _nearest_limit(errors: np.ndarray, allowed: np.ndarray) -> tuple[float, float]:
    """Error and limit of the element that is nearest its limit, or furthest beyond it; zeros for an empty output."""
    if not errors.size:
        return 0.0, 0.0
    nearest = np.argmax(errors / np.maximum(allowed, _TINY))
    return float(errors.flat[nearest]), float(allowed.flat[nearest])


def _first_bad(errors: np.ndarray, allowed: np.ndarray, time: int | None) -> tuple[int, ...] | None:
    """Index of the first element beyond its limit: the first in time, or in memory if there is no time axis."""
    indices = np.argwhere(errors > allowed)  # (elements, axes)
    if not len(indices):
        return None
    first = indices[0] if time is None else indices[np.argmin(indices[:, time])]
    return tuple(int(position) for position in first)


def _over_time(
    case: str, output: str, time: int, errors: np.ndarray, allowed: np.ndarray
) -> ErrorOverTime:
    """At each step, the element that is nearest its limit, or furthest beyond it."""
    steps = errors.shape[time]
    errors = np.moveaxis(errors, time, 0).reshape(steps, -1)  # (T, elements of a step)
    allowed = np.moveaxis(allowed, time, 0).reshape(steps, -1)
    nearest = np.argmax(errors / np.maximum(allowed, _TINY), axis=1)[:, None]  # (T, 1)
    return ErrorOverTime(
        case,
        output,
        errors=tuple(np.take_along_axis(errors, nearest, axis=1)[:, 0].tolist()),
        allowed=tuple(np.take_along_axis(allowed, nearest, axis=1)[:, 0].tolist()),
    )
