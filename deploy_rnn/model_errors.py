"""What is shown of an error within a model: first the line of the user's own code, and no graph of PyTorch's."""

import io
import linecache
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from types import FrameType

LIBRARIES = frozenset(
    {"deploy_rnn", "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "sympy"}
)
"""Packages whose lines say nothing about the user's model; nor do those of the standard library."""

Place = tuple[FrameType, int]
"""A frame, and the number of the line that it is at."""


def raising_line(error: BaseException) -> str | None:
    """Return the innermost line of the user's code in the traceback of `error`, or of its causes.

    It reads "model.py:31: `if x.mean() > 0:`", with the path of the file; None if there is no such line.
    """
    seen: BaseException | None = error
    line = None
    while seen is not None:
        line = _innermost(traceback.walk_tb(seen.__traceback__)) or line
        seen = seen.__cause__
    return line


def running_line(inside: str) -> str | None:
    """Return the innermost line of the user's code that is running now.

    Args:
        inside: the module that has called the model; lines outside this call are left out.
    """
    places: list[Place] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _module(frame) != inside:
        places.append((frame, frame.f_lineno))
        frame = frame.f_back
    return _innermost(reversed(places))


@contextmanager
def nothing_printed_on_error() -> Iterator[None]:
    """Drop what was printed to stderr if the block raises: PyTorch prints the graph that it has so far."""
    with redirect_stderr(io.StringIO()) as printed:
        yield
    sys.stderr.write(printed.getvalue())


def _innermost(places: Iterable[Place]) -> str | None:
    """`places`: the innermost last."""
    line = None
    for frame, number in places:
        file = frame.f_code.co_filename
        # Code that a library generates, such as "<eval_with_key>.3", has no file.
        if file.startswith("<") or _is_library(_module(frame)):
            continue
        code = linecache.getline(file, number).strip()
        line = f"{file}:{number}: `{code}`" if code else f"{file}:{number}"
    return line


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_library(module: str) -> bool:
    package = module.partition(".")[0]
    return package in LIBRARIES or package in sys.stdlib_module_names
