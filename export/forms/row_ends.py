"""Rows of different length, for forms whose walk does not know of them.

Every direction walks on beyond the end of a row: what came before does not depend on it, and nothing there is read.
The reverse direction walks a sequence in which each row is reversed within its length, so that it starts at the row's
own last step; its output is reversed back. A final state is that of the row's own last step. The alternative, a mask at
every step, costs an RNN a third of its time.

A row can be empty only where the model computes its lengths, since callers check those that are an input. It keeps its
first states, as in `deploy_rnn.nn`; PyTorch refuses it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..stack import Stack
from .builder import Builder
from .shapes import batch_size, time_size, zero


def _shared(method: "Callable[[RowEnds], ir.Value]") -> "Callable[[RowEnds], ir.Value]":
    """Let stacks of the same lengths, T and B share the value that a method writes."""

    @functools.wraps(method)
    def once(ends: "RowEnds") -> ir.Value:
        steps = str(ends.stack.steps)
        batch = str(ends.stack.batch)
        key = (method.__name__, ends.lengths, steps, batch)
        return ends.build.once(key, lambda: method(ends))

    return once


@dataclass(frozen=True)
class RowEnds:
    """Where the rows of a stack end, and what follows from it.

    Attributes:
        build: of the whole stack.
        stack: whose rows these are.
        lengths: (B,), int64; a length below 1 stands for an empty row.
    """

    build: Builder
    stack: Stack
    lengths: ir.Value

    @classmethod
    def of(cls, build: Builder, stack: Stack) -> "RowEnds | None":
        """None for a stack whose rows all have T steps."""
        if stack.lengths is None:
            return None
        lengths = build.scope("lengths").cast(stack.lengths, ir.DataType.INT64)
        return cls(build, stack, lengths)

    def reverse_rows(self, build: Builder, rows: ir.Value) -> ir.Value:
        """[T*B, N] -> the same with each row reversed within its length; its own inverse."""
        return build.op("Gather", rows, self._reversed_positions(), axis=0)

    def clear_padding(self, build: Builder, rows: ir.Value) -> ir.Value:
        """[T*B, N] -> the same with zeros beyond the end of each row."""
        mask = self._mask()
        return build.op("Where", mask, rows, zero(self.build, self.stack))

    @_shared
    def ended(self) -> ir.Value:
        """1 where step t is beyond the end of row b, else 0, [T*B, 1], in the dtype of the stack."""
        assert self.stack.input.dtype is not None
        beyond = self.build.scope("beyond").op("Not", self._mask())
        return self.build.scope("ended").cast(beyond, self.stack.input.dtype)

    def final_states(
        self,
        build: Builder,
        sequences: Sequence[ir.Value],
        starts: Sequence[ir.Value | None],
    ) -> Sequence[ir.Value]:
        """States at every step, [T*B, P] ..., as they were walked -> after each row's own last step, [B, P] ...

        `starts`: the first states, [B, P] ... or [1, B, P] ...; None for zeros.
        """
        positions = self._last_positions()
        finals = []
        for index, rows in enumerate(sequences):
            name = self.stack.state_names[index]
            final = build.scope(f"{name}.last").op("Gather", rows, positions, axis=0)
            if self.stack.computes_lengths:
                start = self._start(build.scope(f"{name}.first"), starts[index], index)
                final = build.scope(f"{name}.final").op("Where", self._has_steps(), final, start)
            finals.append(final)
        # States that were not kept after every step are not read either: any value does.
        missing = len(self.stack.sizes) - len(finals)
        return finals + finals[:1] * missing

    def _start(self, build: Builder, start: ir.Value | None, index: int) -> ir.Value:
        """The first state `index`, [B, P], or 0."""
        if start is None:
            return zero(self.build, self.stack)
        return build.reshape(start, [-1, self.stack.sizes[index]])  # a derived cell has [1, B, P]

    @_shared
    def _has_steps(self) -> ir.Value:
        """Whether a row has a step, [B, 1]."""
        build = self.build.scope("has_steps")
        has_steps = build.op("Greater", self.lengths, self._number(0))
        return build.scope(".column").reshape(has_steps, [-1, 1])

    @_shared
    def _reversed_positions(self) -> ir.Value:
        """For each of T*B positions, which of the T*B rows belongs there, [T*B].

        1. Step t within row b: step length - 1 - t of the same row.
        2. Beyond its end: the step itself.
        """
        build = self.build.scope("turned")
        from_the_end = self.build.scope("back").op("Sub", self._last_step(), self._steps())
        step = build.scope(".step").op(
            "Where", self._is_within(), from_the_end, self._steps()
        )  # [T, B]
        positions = self._positions(build.scope(".place"), step)
        return build.reshape(positions, [-1])

    @_shared
    def _last_positions(self) -> ir.Value:
        """Where the last step of each row is among T*B rows, [B]."""
        last_step = self._last_step()
        return self._positions(self.build.scope("ends"), last_step)

    def _positions(self, build: Builder, step: ir.Value) -> ir.Value:
        """Steps, [T, B] or [B] -> their positions among T*B rows: t*B + b."""
        batch = self._scalar("B", batch_size(self.build, self.stack))
        first_row = build.scope(".first").op("Mul", step, batch)
        return build.op("Add", first_row, self._rows())

    @_shared
    def _mask(self) -> ir.Value:
        """Whether step t is within row b, [T*B, 1]."""
        is_within = self._is_within()
        return self.build.scope("mask").reshape(is_within, [-1, 1])

    @_shared
    def _is_within(self) -> ir.Value:
        """Whether step t is within row b, [T, B]."""
        return self.build.scope("within").op("Less", self._steps(), self.lengths)

    @_shared
    def _last_step(self) -> ir.Value:
        """Of each row, [B]; the first step of an empty row."""
        one = self._number(1)
        lengths = self.lengths
        if self.stack.computes_lengths:
            lengths = self.build.scope("at_least_1").op("Max", lengths, one)
        return self.build.scope("last_step").op("Sub", lengths, one)

    @_shared
    def _steps(self) -> ir.Value:
        """0, 1 ... T-1, [T, 1]."""
        steps = self._range("T", time_size(self.build, self.stack))
        return self.build.scope("steps").reshape(steps, [-1, 1])

    @_shared
    def _rows(self) -> ir.Value:
        """0, 1 ... B-1, [B]."""
        return self._range("B", batch_size(self.build, self.stack))

    def _range(self, axis: str, size: int | ir.Value) -> ir.Value:
        """0, 1 ... size-1"""
        build = self.build.scope(f"{axis}.count")
        if isinstance(size, int):
            return build.constant(np.arange(size))
        start = self._number(0)
        end = self._scalar(axis, size)
        return build.op("Range", start, end, self._number(1))

    def _scalar(self, axis: str, size: int | ir.Value) -> ir.Value:
        """The size of an axis as a tensor without axes, which Range takes."""
        if isinstance(size, int):
            return self._number(size)
        build = self.build.scope(f"{axis}.number")
        return build.once(("number", size), lambda: build.op("Squeeze", size))

    def _number(self, number: int) -> ir.Value:
        build = self.build.scope(f"number.{number}")
        return build.once(("number", number), lambda: build.constant(np.array(number)))
