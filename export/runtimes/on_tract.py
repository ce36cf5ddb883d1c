"""tract. The batch must be a number in the file, which `portable=True` writes; some other files abort the process."""

from importlib.metadata import version as package_version

import numpy as np
import tract

from .opened import Feeds, Run, Source


def version() -> str:
    return package_version("tract")


def open_file(source: Source) -> Run:
    runnable = tract.onnx().load(source.path).into_model().into_runnable()

    def run(feeds: Feeds) -> list[np.ndarray]:
        inputs = [np.ascontiguousarray(feeds[name]) for name in source.inputs]
        return [output.to_numpy() for output in runnable.run(inputs)]

    return run
