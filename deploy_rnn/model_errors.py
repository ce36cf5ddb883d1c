"""What is shown of an error within a model: first the line of the user's own code, and no graph of PyTorch's."""

import io
import linecache
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType

LIBRARIES = frozenset(
    {"deploy_rnn", "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "sympy"}
)
"""Packages whose lines say nothing about the user's model; nor do those of the standard library."""

LONGEST = 500
"""Characters of another library's message that are shown; torch lists every backend there is."""

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


def line_in_text(stack_trace: str) -> str | None:
    """Return the innermost line of the user's code in a traceback that PyTorch has kept as text."""
    line = None
    for file, number in re.findall(r'File "([^"]+)", line (\d+)', stack_trace):
        if not _is_library_file(file):
            line = shown_line(file, int(number))
    return line


def first_paragraph(error: BaseException, *, preamble: str | None = None) -> str:
    """Return the type of an error and the first paragraph of its text, as one line.

    Args:
        error: any.
        preamble: the end of what the text may begin with, which is left out; None for nothing.
    """
    text = str(error)
    if preamble is not None:
        text = text.rpartition(preamble)[2]
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    if len(paragraph) > LONGEST:
        paragraph = f"{paragraph[:LONGEST]} ..."
    return f"{type(error).__name__}: {paragraph}" if paragraph else type(error).__name__


def error_text(error: BaseException) -> str:
    """Return what the model's own code raised: the line, as `raising_line` has it, the type and one paragraph."""
    line = raising_line(error)
    return f"{line}: {first_paragraph(error)}" if line else first_paragraph(error)


def own_failure(error: BaseException) -> str:
    """Return the sentence about a model that does not run, with the line of its code at the beginning."""
    line = raising_line(error)
    start = f"{line}: " if line else ""
    return f"{start}the model itself fails on its arguments: {first_paragraph(error)}"


NUMBER = (
    "the model takes a number out of a tensor here, or before, as float(), int(), .item() and .tolist() do, and there "
    "is one graph for all values. Compute with the tensor itself, and use the shape of an input as a size. "
    "For a loop over the steps of packed rows, let pad_packed_sequence have `total_length=x.size(...)`."
)
BRANCH = (
    "the model goes another way for other values of its inputs here, and there is one graph for all values. Use "
    "torch.where in place of a branch, the shape of an input in place of a computed size, and leave out checks of "
    "values."
)

NUMPY = (
    "the model goes through numpy here, which a graph cannot follow; use the functions of torch."
)

PACKING = (
    "the model packs its rows here (pack_padded_sequence, pad_packed_sequence), by lengths that are values, and there "
    "is one graph for all values. Let pad_packed_sequence have `total_length=x.size(...)`, the steps of the padded "
    "input, and the lengths be a tensor."
)


def data_dependence(error: BaseException) -> str | None:
    """Return what a model does with values that torch.export does not know, and what to do about it.

    None for any other error.
    """
    if type(error).__name__ != "GuardOnDataDependentSymNode":
        return None
    if _is_packing(error):
        return f"{PACKING} PyTorch says: {first_paragraph(error)}"
    # A size or a number that is not known yet is asked for, not whether something is true.
    text = NUMBER if re.search("specialized|zuf", str(error)) else BRANCH
    return f"{text} PyTorch says: {first_paragraph(error)}"


def leaves_torch(error: BaseException) -> str | None:
    """Return that a model computes with numpy, and what to do about it; None for any other error."""
    # A tensor becomes an array; or a size, of which torch.export only knows the name, is in one, or makes one.
    text = str(error)
    is_left = (
        ".numpy() is not supported" in text
        or "np.ndarray of type numpy.object_" in text
        or type(error).__name__ == "TraceError"
    )
    return NUMPY if is_left else None


def _is_packing(error: BaseException) -> bool:
    """Whether it was raised within PyTorch's functions for packed sequences."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(_module(frame) == "torch.nn.utils.rnn" for frame, _ in frames)


@contextmanager
def quiet_loggers(names: Iterable[str]) -> Iterator[None]:
    """Let these loggers of Python report errors only."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def ignore_computed_weights() -> None:
    """Within `catch_warnings`, leave out what PyTorch says of a weight that a forward computes.

    A model that changes its own state was refused before.
    """
    warnings.filterwarnings(
        "ignore", "The tensor attributes? .* assigned during export", category=UserWarning
    )


def warn_user(message: str) -> None:
    """Warn at the innermost line of the user's code that is running now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_library(_module(frame)):
        frame = frame.f_back
    if frame is None:
        warnings.warn(message, stacklevel=2)
    else:
        registry = frame.f_globals.setdefault("__warningregistry__", {})
        warnings.warn_explicit(
            message, UserWarning, frame.f_code.co_filename, frame.f_lineno, registry=registry
        )


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
        if user_file(frame):
            line = shown_line(frame.f_code.co_filename, number)
    return line


def user_file(frame: FrameType) -> bool:
    """Whether a frame is of the user's own code, or of a package that may be a part of the model."""
    # Code that a library generates, such as "<eval_with_key>.3", has no file.
    is_generated = frame.f_code.co_filename.startswith("<")
    return not is_generated and not _is_library(_module(frame))


def shown_line(file: str, number: int) -> str:
    """The place and text of a line, such as "model.py:31: `if x.mean() > 0:`"."""
    code = linecache.getline(file, number).strip()
    return f"{file}:{number}: `{code}`" if code else f"{file}:{number}"


def _is_library_file(file: str) -> bool:
    """Whether a file, of which only the path is known, belongs to a package that is no part of the user's model."""
    if file.startswith("<"):
        return True
    for name, module in list(sys.modules.items()):
        # Not getattr: a module that is loaded when it is first used would be loaded by it, or fail.
        if getattr(module, "__dict__", {}).get("__file__") == file:
            return _is_library(name)
    return bool(LIBRARIES.intersection(Path(file).parts))


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_library(module: str) -> bool:
    package = module.partition(".")[0]
    return package in LIBRARIES or package in sys.stdlib_module_names
