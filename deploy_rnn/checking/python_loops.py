"""`python_loop`: where a model walks over an axis of its inputs in a loop of Python, which no graph keeps a loop."""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.trials import resized
from deploy_rnn.model_errors import shown_line, user_file

LOOP = re.compile(r"\b(for|while)\b")


@dataclass(frozen=True)
class PythonLoop:
    """A loop with more steps for a longer axis.

    Attributes:
        line: of the model, such as "model.py:12: `for x in steps:`".
        input: the name of the tensor, such as "hx[0]".
        tensor: the number of that tensor in the call.
        axis: its number.
        places: the file and the number of each line with more steps, of this loop and of others.
    """

    line: str
    input: str
    tensor: int
    axis: int
    places: Sequence[tuple[str, int]]

    def __str__(self) -> str:
        """The beginning of a sentence about it."""
        return f"{self.line} is a loop over axis {self.axis} of `{self.input}`"

    @property
    def advice(self) -> str:
        return "Put it into deploy_rnn.scan, which stays a loop, or make its step the cell of a deploy_rnn.Recurrent."


def python_loop(model: nn.Module, call: ExampleCall) -> PythonLoop | None:
    """The first loop over an axis of the inputs: the model is run with each axis longer by one, and lines are counted.

    `model` is in evaluation mode.
    """
    lines = _run_lines(model, call)
    if not any(map(_is_loop, lines)):
        return None
    for axes in _axes_together(call):
        longer_lines = _run_lines(model, _longer(call, axes))
        more = [line for line, number in lines.items() if longer_lines[line] > number]
        for file, number in more:
            if _is_loop((file, number)):
                tensor, axis = axes[0]
                line = shown_line(file, number)
                return PythonLoop(line, call.names[tensor], tensor, axis, more)
    return None


def _is_loop(place: tuple[str, int]) -> bool:
    _, _, code = shown_line(*place).partition("`")
    return LOOP.search(code) is not None


def _axes_together(call: ExampleCall) -> Iterator[list[tuple[int, int]]]:
    """Every axis by itself; then all of one size, such as those of a sequence and its mask."""
    by_size: dict[int, list[tuple[int, int]]] = {}
    for number, tensor in enumerate(call.tensors):
        for axis, size in enumerate(tensor.shape):
            yield [(number, axis)]
            by_size.setdefault(size, []).append((number, axis))
    yield from (axes for axes in by_size.values() if len(axes) > 1)


def _longer(call: ExampleCall, axes: Sequence[tuple[int, int]]) -> ExampleCall:
    tensors = []
    for number, tensor in enumerate(call.tensors):
        shape = [size + ((number, axis) in axes) for axis, size in enumerate(tensor.shape)]
        tensors.append(resized(tensor, shape))
    return call.with_tensors(tensors)


def _run_lines(model: nn.Module, call: ExampleCall) -> Counter[tuple[str, int]]:
    """How often each line of the user's code runs, in the order in which they first do; none if the model fails."""
    lines: Counter[tuple[str, int]] = Counter()

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        return count if user_file(frame) else None

    def count(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines[frame.f_code.co_filename, frame.f_lineno] += 1
        return count

    previous = sys.gettrace()
    sys.settrace(enter)
    try:
        call.run(model)
    except Exception:  # the model's own code may raise anything
        return Counter()
    finally:
        sys.settrace(previous)
    return lines
