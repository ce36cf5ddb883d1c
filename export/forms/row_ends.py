"""Rows of different length, for forms whose walk does not know of them.

Every direction walks on beyond the end of a row: what came before does not depend on it, and nothing there is read.
The reverse direction walks a sequence in which each row is reversed within its length, so that it starts at the row's
own last step; its output is reversed back. A final state is that of the row's own last step. The alternative, a mask at
every step, costs an RNN a third of its time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..stack import Stack
from .builder import Builder
from .shapes import batch_size, time_size, zero


@dataclass(frozen=True)
class RowEnds:
    """Where the rows of a stack end, and what follows from it.

    Attributes:
        build: of the whole stack.
        stack: whose rows these are.
        lengths: (B,), int64.
    """

    build: Builder
    stack: Stack
    lengths: ir.Value

    @classmethod
    def of(cls, build: Builder, stack: Stack) -> "RowEnds | None":
        """None for a stack whose rows all have T steps."""
        if stack.lengths is None:
            return None
        return cls(build, stack, build.scope("lengths").cast(stack.lengths, ir.DataType.INT64))

    def reverse_rows(self, build: Builder, rows: ir.Value) -> ir.Value:
        """[T*B, N] -> the same with each row reversed within its length; its own inverse."""
        positions = self._once("turned", self._reversed_positions)
        return build.op("Gather", rows, positions, axis=0)

    def clear_padding(self, build: Builder, rows: ir.Value) -> ir.Value:
        """[T*B, N] -> the same with zeros beyond the end of each row."""
        mask = self._once("mask", lambda: self.build.scope("mask").reshape(self._is_within(), [-1, 1]))
        return build.op("Where", mask, rows, zero(self.build, self.stack))

    def final_states(self, build: Builder, sequences: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """States at every step, [T*B, P] ..., as they were walked -> after each row's own last step, [B, P] ..."""
        positions = self._once("ends", lambda: self._positions(self.build.scope("ends"), self._last_step()))
        finals = [
            build.scope(f"{name}.last").op("Gather", rows, positions, axis=0)
            for name, rows in zip(self.stack.state_names, sequences, strict=False)
        ]
        # Nobody reads the states that were not kept at every step; any value of the right count will do.
        missing = len(self.stack.sizes) - len(finals)
        return finals + finals[:1] * missing

    def _reversed_positions(self) -> ir.Value:
        """Which of T*B rows belongs at each of T*B positions: at step t of row b, its step length - 1 - t; beyond the
        end, the step itself.
        """
        build = self.build.scope("turned")
        from_the_end = self.build.scope("back").op("Sub", self._last_step(), self._steps())
        step = build.scope(".step").op("Where", self._is_within(), from_the_end, self._steps())
        return build.reshape(self._positions(build.scope(".place"), step), [-1])

    def _positions(self, build: Builder, step: ir.Value) -> ir.Value:
        """Steps, [T, B] or [B] -> their positions among T*B rows."""
        batch = batch_size(self.build, self.stack)
        first_row = build.scope(".first").op("Mul", step, self._scalar("B", batch))
        row = self._once("row", lambda: self._range("B", batch))
        return build.op("Add", first_row, row)

    def _is_within(self) -> ir.Value:
        """Whether step t is within row b, [T, B]."""
        return self._once("within", lambda: self.build.scope("within").op("Less", self._steps(), self.lengths))

    def _last_step(self) -> ir.Value:
        """Of each row, [B]."""
        return self._once("last", lambda: self.build.scope("last_step").op("Sub", self.lengths, self._number(1)))

    def _steps(self) -> ir.Value:
        """0, 1 ... T-1, [T, 1]."""
        steps = self._once("count", lambda: self._range("T", time_size(self.build, self.stack)))
        return self._once("steps", lambda: self.build.scope("steps").reshape(steps, [-1, 1]))

    def _range(self, axis: str, size: int | ir.Value) -> ir.Value:
        """0, 1 ... size-1"""
        build = self.build.scope(f"{axis}.count")
        if isinstance(size, int):
            return build.constant(np.arange(size))
        return build.op("Range", self._number(0), self._scalar(axis, size), self._number(1))

    def _scalar(self, axis: str, size: int | ir.Value) -> ir.Value:
        """The size of an axis without any axis of its own: Range and Mul take it so."""
        if isinstance(size, int):
            return self._number(size)
        build = self.build.scope(f"{axis}.number")
        return build.once(("number", size), lambda: build.op("Squeeze", size))

    def _number(self, number: int) -> ir.Value:
        build = self.build.scope(f"number.{number}")
        return build.once(("number", number), lambda: build.constant(np.array(number)))

    def _once(self, name: str, make: Callable[[], ir.Value]) -> ir.Value:
        """Stacks of the same lengths, T and B share it."""
        key = ("ends", name, self.lengths, str(self.stack.steps), str(self.stack.batch))
        return self.build.once(key, make)
