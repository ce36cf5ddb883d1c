"""The cases of a file on one execution provider: how far each output differs, where each node ran, how long it took."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnxruntime import InferenceSession

from deploy_rnn.checking.tolerance import Expected, Tolerance, difference, magnitudes
from deploy_rnn.errors import ExportError, ProviderError, VerificationError
from deploy_rnn.runtime import CPU, RanNode, open_session, provider_named, ran_nodes
from deploy_rnn.timing import compare

from .cases import Case
from .report import Comparison, ErrorOverTime, Placement, Report

# Seconds for the timing of one case, since it is part of every export.
TIMING = 0.05

_TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class Plan:
    """What is run on every provider.

    Attributes:
        file: the .onnx file.
        todo: the cases; the first is the example.
        limits: how much may differ.
        time_axes: for each output with a time axis, which that is.
        timed: which of `todo` are timed.
        required: the provider that must run every node, if any.
    """

    file: Path
    todo: Sequence[Case]
    limits: Tolerance
    time_axes: dict[str, int]
    timed: Sequence[Case]
    required: str | None


def run_on(provider: str, plan: Plan, report: Report) -> Report:
    """`report` with what `provider` did, graph optimisations off and on, or why it was not run.

    Raises:
        ProviderError: it is required, and is missing, does not start, or left nodes to another.
        VerificationError: an output of another dtype or shape.
        ExportError: a case fails.
        LoadError: onnxruntime cannot open the file.
    """
    try:
        entry = provider_named(provider)
        if not entry.present():
            raise ProviderError(f"there is no {entry.device}.")
        return _run_on(provider, plan, report)
    except ProviderError as error:
        if provider == plan.required:
            raise ProviderError(f"`require_provider` (={provider!r}): {error}") from error
        return replace(report, providers={**report.providers, provider: f"not checked: {error}"})


def _run_on(provider: str, plan: Plan, report: Report) -> Report:
    plain = _Runs(open_session(plan.file, provider, optimize=False), provider, False, plan, report)
    comparisons = [each for case in plan.todo for each in plain.compared(case)]
    with TemporaryDirectory() as folder:
        session = open_session(plan.file, provider, profile_to=Path(folder))
        runs = _Runs(session, provider, True, plan, report)
        comparisons += runs.compared(plan.todo[0])
        ran = ran_nodes(session)
    _check_ran(provider, ran, required=provider == plan.required)
    comparisons += [each for case in plan.todo[1:] for each in runs.compared(case)]
    placed = _placement(ran)
    return replace(
        report,
        providers={**report.providers, provider: "checked" if provider == CPU else f"checked; it ran {placed}"},
        comparisons=(*report.comparisons, *comparisons),
        placement={**report.placement, provider: placed},
        over_time=(*report.over_time, *(runs.over_time if provider == CPU else ())),
        latency={**report.latency, provider: {case.label: _milliseconds(session, case) for case in plan.timed}},
    )


def _check_ran(provider: str, ran: Sequence[RanNode], *, required: bool) -> None:
    """Raises: ProviderError."""
    if provider not in {node.provider for node in ran}:
        raise ProviderError(f"{provider} started but ran none of the nodes.")
    left = [node for node in ran if node.provider != provider and not node.only_sizes]
    if required and left:
        shown = ", ".join(f"`{node.name}` ({node.op_type}, {node.provider})" for node in left[:5])
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise ProviderError(f"it left {len(left)} of {len(ran)} nodes to another provider: {shown}{more}.")


def _placement(ran: Sequence[RanNode]) -> Placement:
    providers = dict.fromkeys(node.provider for node in ran)
    counts = {each: Counter(node.op_type for node in ran if node.provider == each) for each in providers}
    return Placement(
        nodes={each: dict(count.most_common()) for each, count in counts.items()},
        copies=sum(node.copies for node in ran),
    )


def _milliseconds(session: InferenceSession, case: Case) -> float:
    """Of one run, inputs and outputs in the CPU's memory: the median of as many as fit into `TIMING`, at least two."""

    def median(calls: int) -> float:
        run = {"": lambda: session.run(None, case.feeds)}
        return compare(run, rounds=1, calls=calls, warm_up=0, pause=0)[""].median

    first = median(2)
    calls = min(int(TIMING / first), 50)
    return 1000 * (median(calls) if calls > 2 else first)


class _Runs:
    """One session, and how far the outputs of its runs are from PyTorch's."""

    def __init__(self, session: InferenceSession, provider: str, optimized: bool, plan: Plan, report: Report) -> None:
        self._session, self._provider, self._optimized = session, provider, optimized
        self._plan, self._outputs, self._name = plan, report.outputs, Path(report.path).name
        self.over_time: list[ErrorOverTime] = []

    def compared(self, case: Case) -> Iterator[Comparison]:
        """Run one case and compare each output."""
        try:
            results = case.run(self._session)
        except Exception as error:  # onnxruntime has a dozen types, with no base of their own
            raise ExportError(f"{self._name} fails on {case.label}: {error}") from error
        for spec, expected, actual in zip(self._outputs, case.expected, results, strict=False):
            if actual.shape != expected.values.shape or actual.dtype != expected.values.dtype:
                raise VerificationError(
                    f"{self._name} is not the model: `{spec.name}` is {actual.dtype}{list(actual.shape)} on "
                    f"{case.label}, PyTorch gives {expected.values.dtype}{list(expected.values.shape)}."
                )
            yield self._comparison(case.label, spec.name, expected, actual)

    def _comparison(self, case: str, output: str, expected: Expected, actual: np.ndarray) -> Comparison:
        apart, allowed = difference(expected.values, actual), self._plan.limits.allowed(expected)
        time = self._plan.time_axes.get(output)
        if time is not None:
            self.over_time.append(_over_time(case, output, time, apart, allowed))
        worst, bad = float(apart.max(initial=0)), np.argwhere(apart > allowed)
        at = np.argmax(apart / np.maximum(allowed, _TINY)) if apart.size else None
        first = None
        if len(bad):
            first = tuple(map(int, bad[0 if time is None else np.argmin(bad[:, time])]))
        return Comparison(
            provider=self._provider,
            optimized=self._optimized,
            case=case,
            output=output,
            max_abs_error=worst,
            max_rel_error=worst / (float(magnitudes(expected.values).max(initial=0)) or 1.0),
            difference=0.0 if at is None else float(apart.flat[at]),
            allowed=0.0 if at is None else float(allowed.flat[at]),
            rounding=expected.rounding,
            first_bad=first,
            first_bad_step=None if first is None or time is None else first[time],
        )


def _over_time(case: str, output: str, axis: int, apart: np.ndarray, allowed: np.ndarray) -> ErrorOverTime:
    """At each step, the element that is nearest its limit, or furthest beyond it."""
    apart, allowed = (np.moveaxis(each, axis, 0).reshape(each.shape[axis], -1) for each in (apart, allowed))
    at = np.argmax(apart / np.maximum(allowed, _TINY), axis=1)[:, None]
    worst, limit = (np.take_along_axis(each, at, axis=1)[:, 0].tolist() for each in (apart, allowed))
    return ErrorOverTime(case, output, errors=tuple(worst), allowed=tuple(limit))
