"""`count_cell_calls`: which cells of torch.nn a model steps in a loop of Python."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from deploy_rnn.model_errors import running_line
from deploy_rnn.nn.loops import in_step


@dataclass
class CellCalls:
    """How a model calls one of its cells.

    Attributes:
        path: of the cell.
        name: of its class, such as "LSTMCell".
        number: of calls; those by the step of a `scan`, which stays a loop, are not counted.
        line: of the model, that of the last call; empty if it is not known.
    """

    path: str
    name: str
    number: int = 0
    line: str = ""

    def __str__(self) -> str:
        """The subject of a sentence about a cell in a loop."""
        start = f"{self.line}: " if self.line else ""
        return (
            f"{start}`{self.path or 'model'}` is a torch.nn.{self.name}, which the model calls {self.number} times in "
            "a loop"
        )

    @property
    def advice(self) -> str:
        layer = self.name.removesuffix("Cell")
        return f"Put the loop into deploy_rnn.scan, which stays one, or use torch.nn.{layer}."


@contextmanager
def count_cell_calls(model: nn.Module, caller: str) -> Iterator[list[CellCalls]]:
    """Count how often each cell of `model` is called: a list of them all.

    Args:
        caller: the module that calls the model, whose lines, and those outside of it, are not the model's.
    """
    hooks = []
    cells = []
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNCellBase):
            calls = CellCalls(path, type(module).__name__)
            cells.append(calls)

            def count(*_: object, calls: CellCalls = calls) -> None:
                if not in_step():
                    calls.number += 1
                    calls.line = running_line(caller) or ""

            hooks.append(module.register_forward_pre_hook(count))
    try:
        yield cells
    finally:
        for hook in hooks:
            hook.remove()
