"""`judge`: whether a file that was run is the model, and whether its rounding costs no more than it may."""

import itertools

from deploy_rnn.checking.trials import Reference
from deploy_rnn.errors import VerificationError

from ..precision.metric import ErrorMetric
from ..precision.reference import Int8Reference
from .int8_integers import FileIntegers, integer_faults, scope_faults
from .report import Comparison, Report
from .runs import Plan


def judge(
    report: Report, plan: Plan, reference: Reference, max_error: float | ErrorMetric | None
) -> None:
    """
    Args:
        report: what was found.
        plan: what was run.
        reference: the model; in int8, it says which integers the file must have.
        max_error: what rounding may cost; None for any.

    Raises:
        VerificationError: the file is not the model, or rounding costs more than it may.
    """
    name = report.file.name
    if isinstance(reference, Int8Reference):
        integers = FileIntegers.read(plan.path)
        for fault in itertools.chain(
            scope_faults(integers, reference.scope, reference.cells),
            integer_faults(integers, reference.weights),
        ):
            raise VerificationError(f"{name} is not the model: {fault}.", report)
    if report.failures:
        worst = max(report.failures, key=lambda comparison: comparison.used)
        advice = plan.advice(worst.case)
        message = f"{name} is not the model: {_describe_failure(report, worst)}.{advice}"
        raise VerificationError(message, report)
    _check_cost(report, max_error)


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
