"""`form="auto"`: every form that fits, measured side by side on the example."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy_rnn.checking.trials import Reference
from deploy_rnn.errors import ExportError, LoadError
from deploy_rnn.files import replace_file
from deploy_rnn.runtime import open_session, specs
from deploy_rnn.timing import compare

from .capture.captured import CapturedModel
from .forms import FIXED_TIME, FORMS
from .saving import save
from .verification.cases import example_feeds
from .verification.verify import lacking_operator

FIXES_STEPS = "not measured: it fixes the number of steps, which is dynamic here"


def choose_form(captured: CapturedModel, *, max_nodes: int) -> tuple[str, dict[str, float | str]]:
    """Return the fastest form in onnxruntime on the CPU; and for every form its milliseconds, or why it does not fit.

    What is dynamic stays dynamic: a form that fixes the number of steps takes part only where that is fixed anyway.

    Raises:
        ExportError: no form fits.
    """
    runs: dict[str, Callable[[], object]] = {}
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
            reasons = " ".join(f"{form}: {reason}" for form, reason in refusals.items())
            raise ExportError(f"no form fits: {reasons}")
        timings = compare(runs, rounds=2, calls=7, block_seconds=0.3)
    milliseconds = {form: 1000 * timing.median for form, timing in timings.items()}
    fastest = min(milliseconds, key=lambda form: milliseconds[form])
    results = refusals | milliseconds
    return fastest, {form: results[form] for form in FORMS}
