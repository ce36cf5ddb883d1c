"""The cases of a file in another runtime than onnxruntime, which lives in a process of its own."""

from collections.abc import Mapping

import numpy as np

from deploy_rnn.errors import ExportError, RunError

from ..runtimes.faults import faults_of
from ..runtimes.opened import Source
from ..runtimes.process import RuntimeProcess
from ..runtimes.table import Runtime
from .runs import Plan, ProviderResult, Session


def run_in(runtime: Runtime, plan: Plan, source: Source) -> ProviderResult:
    """What `runtime` did.

    `source`: the file of the plan, and its inputs; the model may take more.

    Raises:
        RuntimeMissingError: it is not installed.
        RunError: it does not start.
        ExportError: it refuses the file or a case.
        VerificationError: an output of another dtype or shape.
    """
    with RuntimeProcess(runtime) as process:
        version = process.version()
        process.open(source)

        def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            outputs = process.run({name: feeds[name] for name in source.inputs})
            if len(outputs) != len(source.outputs):
                raise RunError(
                    f"{runtime.title} returned {len(outputs)} outputs, the file has {len(source.outputs)}."
                )
            return [
                _whole(array, spec.dtype)
                for array, spec in zip(outputs, plan.file.outputs, strict=True)
            ]

        session = Session(run, runtime.name, plan, optimized=True)
        try:
            for case in plan.cases:
                session.check(case)
        except ExportError as error:
            known = [str(fault) for fault in faults_of(plan.file, runtime.name)]
            if not known:
                raise
            advice = f"Known of {runtime.title}: {' '.join(known)}"
            raise type(error)(f"{error} {advice}") from error
        latency = {}
        for case in plan.timed:
            feeds = {name: case.feeds[name] for name in source.inputs}
            latency[case.label] = process.milliseconds(feeds)
    return ProviderResult(
        provider=runtime.name,
        status=f"checked; {runtime.title} {version}",
        comparisons=session.comparisons,
        over_time=session.over_time,
        latency=latency,
        untrimmed=[*session.untrimmed],
    )


def _whole(array: np.ndarray, dtype: str) -> np.ndarray:
    """Whole numbers in the dtype of the file: some runtimes have 32 bits for all of them."""
    if array.dtype.kind in "iu" and np.dtype(dtype).kind in "iu":
        return array.astype(dtype)
    return array
