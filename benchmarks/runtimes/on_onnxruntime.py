"""onnxruntime on the CPU, as the other runtimes are opened, so that it has a row in the table."""

import onnxruntime
from numpy import ndarray

from deploy_rnn.export.runtimes.opened import Feeds, Run, Source


def version() -> str:
    return str(onnxruntime.__version__)


def open_file(source: Source) -> Run:
    session = onnxruntime.InferenceSession(source.path, providers=["CPUExecutionProvider"])

    def run(feeds: Feeds) -> list[ndarray]:
        outputs: list[ndarray] = session.run(list(source.outputs), dict(feeds))
        return outputs

    return run
