"""`form="auto"`: every form that fits, measured side by side on the example."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from deploy_rnn.checking.trials import Reference
from deploy_rnn.errors import ExportError, LoadError, RunError
from deploy_rnn.files import replace_file
from deploy_rnn.runtime import open_session, specs
from deploy_rnn.timing import compare

from .capture.captured import CapturedModel
from .forms import FIXED_TIME, FORMS
from .onnx_file import OnnxFile
from .runtimes.faults import faults_of
from .runtimes.opened import Source
from .runtimes.process import RuntimeProcess
from .runtimes.table import ONNXRUNTIME, runtime_named
from .saving import save
from .verification.cases import example_feeds
from .verification.check import lacking_operator

FIXES_STEPS = "not measured: it fixes the number of steps, which is dynamic here"


def choose_form(
    captured: CapturedModel, *, max_nodes: int, runtime: str = ONNXRUNTIME
) -> tuple[str, dict[str, float | str]]:
    """Return the fastest form in a runtime on the CPU; and for every form its milliseconds, or why it does not fit.

    What is dynamic stays dynamic: a form that fixes the number of steps takes part only where that is fixed anyway. So
    do forms that the runtime is not known to refuse, or to get wrong.

    Raises:
        ExportError: no form fits.
        RuntimeMissingError: the runtime is not installed.
    """
    with _written_forms(captured, max_nodes) as (files, refusals):
        measure = _in_onnxruntime if runtime == ONNXRUNTIME else partial(_in_runtime, runtime)
        milliseconds = measure(captured, files, refusals)
    if not milliseconds:
        reasons = " ".join(f"{form}: {reason.rstrip('.')}." for form, reason in refusals.items())
        raise ExportError(f"no form fits: {reasons}")
    fastest = min(milliseconds, key=lambda form: milliseconds[form])
    results = refusals | milliseconds
    return fastest, {form: results[form] for form in FORMS}


@contextmanager
def _written_forms(
    captured: CapturedModel, max_nodes: int
) -> Iterator[tuple[dict[str, Path], dict[str, str]]]:
    """The file of each form that fits, for a while; and why the others do not."""
    files: dict[str, Path] = {}
    refusals: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        for form in FORMS:
            if form in FIXED_TIME and captured.time_names:
                refusals[form] = FIXES_STEPS
                continue
            try:
                graph = captured.written(form, max_nodes=max_nodes)
            except ExportError as error:  # why a form does not fit is part of the answer
                refusals[form] = str(error)
                continue
            path = Path(folder) / f"{form}.onnx"
            replace_file(path, partial(save, graph))
            files[form] = path
        yield files, refusals


def _in_onnxruntime(
    captured: CapturedModel, files: Mapping[str, Path], refusals: dict[str, str]
) -> dict[str, float]:
    """Milliseconds of each file, side by side; one that cannot be opened is added to `refusals`."""
    runs: dict[str, Callable[[], object]] = {}
    for form, path in files.items():
        try:
            session = open_session(path)
        except LoadError as error:
            half = Reference(captured.model).half_precision(captured.call)
            lacking = lacking_operator(error, half)
            # Every form has the same parts around its layers.
            if lacking:
                raise ExportError(lacking) from error
            refusals[form] = str(error).replace(str(path), path.name)
            continue
        runs[form] = partial(session.run, None, example_feeds(specs(session)[0], captured.call))
    if not runs:
        return {}
    timings = compare(runs, rounds=2, calls=7, block_seconds=0.3)
    return {form: 1000 * timing.median for form, timing in timings.items()}


def _in_runtime(
    name: str, captured: CapturedModel, files: Mapping[str, Path], refusals: dict[str, str]
) -> dict[str, float]:
    """The same in another runtime, one file after the other."""
    milliseconds: dict[str, float] = {}
    for form, path in files.items():
        file = OnnxFile.read(path)
        faults = faults_of(file, name)
        if faults:
            refusals[form] = " ".join(map(str, faults))
            continue
        feeds: dict[str, np.ndarray] = example_feeds(file.inputs, captured.call)
        try:
            with RuntimeProcess(runtime_named(name)) as process:
                process.open(Source.of(path, file))
                milliseconds[form] = process.milliseconds(feeds)
        except RunError as error:
            refusals[form] = str(error)
    return milliseconds
