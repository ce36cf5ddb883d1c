"""`Scorer`: the rows of a window to their answers, on one core."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError, RunError
from deploy_rnn.runtime import provider_named

from ..engine.batch_engine import BatchEngine
from ..engine.feeds import Feeds
from ..engine.opening import open_model
from .batches import BatchLimits, Item, plan_batches
from .options import (
    CACHED_ROW_STEPS,
    FEW_ROWS,
    LARGEST_WINDOW,
    MOST_ROW_STEPS,
    WINDOW,
    WINDOW_OF_EQUAL_STEPS,
    WINDOWS,
    Options,
)
from .rows import Columns, Outputs, Row, as_array, is_convertible, is_supported

MEASURED_ROWS = 16
MEASURED_STEPS = 32
"""What graphs are compared with: few steps, since it takes time before the first row is answered."""


@dataclass(frozen=True)
class Fault:
    """Why a row has no answer.

    Attributes:
        index: of the row in its window.
        reason: a sentence.
    """

    index: int
    reason: str


@dataclass(frozen=True)
class Answers:
    """What came of a window.

    Attributes:
        outputs: of each row; None if it has no answer.
        faults: of the rows without an answer, in their order.
    """

    outputs: Sequence[Outputs | None]
    faults: Sequence[Fault]


class Scorer:
    """A model that answers windows, each run on one core.

    Args:
        options: of the whole score.

    Attributes:
        inputs, outputs: of one row: name, dtype and shape, without the batch axis.
        optional: inputs that a row may leave out.

    Raises:
        The errors of `Engine`; InputError: an unknown output, or a dtype that rows cannot have.
    """

    def __init__(self, options: Options) -> None:
        opened = open_model(Path(options.model), options.provider, 1, options.precision)
        self._engine = BatchEngine(opened)
        signature = self._engine.signature
        self._has_rows = all(map(_holds_rows, signature.tensors))
        self.inputs = tuple(self._row_tensor(tensor) for tensor in signature.client_inputs)
        outputs = {tensor.name: tensor for tensor in signature.client_outputs}
        names = self._engine.check_outputs(options.outputs)
        self.outputs = tuple(self._row_tensor(outputs[name]) for name in names)
        self.optional = signature.optional
        for tensor in (*self.inputs, *self.outputs):
            if not is_supported(tensor.dtype):
                raise InputError(
                    f"`{tensor.name}` is {tensor.dtype}, which rows of a file cannot be here."
                )
        self._options = options
        input_names = {tensor.name for tensor in self.inputs}
        self._known_names = input_names.union(options.kept)
        self._needed_names = input_names - self.optional
        self._names = list(names)
        # Outputs with a batch axis -> their axes.
        self._batched_outputs = {
            tensor.name: len(tensor.shape)
            for tensor in signature.outputs
            if tensor.batch is not None
        }
        if options.graph is not None:
            self.use_graph(options.graph)

    def window(self, rows: int | None) -> int:
        """How many rows are sorted by length together: that of the options, or what suits the model and the input.

        Args:
            rows: of the input, about; None if nobody knows.
        """
        if self._options.window is not None:
            return self._options.window
        if not self._engine.padding_is_harmless():
            return WINDOW_OF_EQUAL_STEPS
        if rows is None:
            return WINDOW
        return min(max(WINDOW, rows // WINDOWS), LARGEST_WINDOW)

    def use_graph(self, number: int) -> None:
        """Use one of the graphs for any number of steps, as `fastest_graph` returns it."""
        self._engine.use_graph(number)

    def fastest_graph(self) -> int:
        """Measure which graph for any number of steps takes least for a full run."""
        rows = MEASURED_ROWS if self._engine.rows_are_independent() else 1
        return self._engine.fastest_graph(min(rows, self._options.rows), MEASURED_STEPS)

    def answer(self, rows: Sequence[Row]) -> Answers:
        """Answer the rows of a window."""
        reasons: dict[int, str] = {}
        feeds: dict[int, Feeds] = {}
        for index, row in enumerate(rows):
            if row.fault is not None:
                reasons[index] = row.fault
                continue
            try:
                feeds[index] = self._feeds(row.values)
            except InputError as error:
                reasons[index] = str(error)
        outputs: list[Outputs | None] = [None] * len(rows)
        for batch in self._plan(feeds):
            self._run(batch, feeds, outputs, reasons)
        faults = [Fault(index, reasons[index]) for index in sorted(reasons)]
        return Answers(outputs, faults)

    def check_columns(self, columns: Columns) -> None:
        """Check what all rows of a file have.

        Raises:
            InputError: as for `check_names`; or a column of another kind than its input.
        """
        self.check_names(columns.keys())
        for tensor in self.inputs:
            if tensor.name not in columns:
                continue
            dtype = columns[tensor.name]
            if not is_convertible(dtype, tensor.dtype):
                actual = "not of numbers" if dtype is None else str(dtype)
                raise InputError(f"`{tensor.name}` is {actual}, the model takes {tensor.dtype}.")

    def check_names(self, names: Collection[str]) -> None:
        """Check which values a row has.

        Raises:
            InputError: one that is neither an input nor kept, or an input that is missing.
        """
        # This is asked of every row.
        if self._known_names.issuperset(names) and self._needed_names.issubset(names):
            return
        inputs = [tensor.name for tensor in self.inputs]
        listed = ", ".join(inputs)
        for name in names:
            if name not in self._known_names:
                raise InputError(
                    f"there is no input `{name}`; the inputs are {listed}. `keep` copies other values."
                )
        for name in inputs:
            if name not in names and name not in self.optional:
                raise InputError(f"input `{name}` is missing; the inputs are {listed}.")

    def _row_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor of clients as a row has it: without the batch axis, which comes first."""
        if tensor.batch is None or not self._has_rows:
            return tensor
        time = None if tensor.time is None else tensor.time - 1
        return Tensor(tensor.name, tensor.dtype, tensor.shape[1:], batch=None, time=time)

    def _feeds(self, values: Mapping[str, Any]) -> Feeds:
        """Check the inputs of a row. Raises: InputError: what is wrong with them."""
        arrays = {}
        self.check_names(values.keys())
        signature = self._engine.signature
        for tensor, whole in zip(self.inputs, signature.client_inputs, strict=True):
            value = values.get(tensor.name)
            if value is None:
                continue  # null is as if it were left out
            array = as_array(tensor.name, value, tensor.dtype)
            _check_shape(array, tensor)
            if self._options.finite and not np.isfinite(array).all():
                raise InputError(f"`{tensor.name}` contains NaN or infinity.")
            has_batch = self._has_rows and whole.batch is not None
            arrays[tensor.name] = array[None] if has_batch else array
        return self._engine.check_inputs(arrays)

    def _plan(self, feeds: Mapping[int, Feeds]) -> list[list[int]]:
        items = []
        for index, row in feeds.items():
            key = (row.other_sizes, row.step_ranges)
            items.append(Item(index, key, row.steps or 0))
        rows = 1
        waste = 0.0
        # The trials run the model: not for a single row.
        if len(items) > 1 and self._engine.rows_are_independent():
            most = self._engine.most_rows
            rows = self._options.rows if most is None else min(self._options.rows, most)
            if self._engine.padding_is_harmless():
                waste = self._options.waste
        if provider_named(self._options.provider).uses_cores:
            limits = BatchLimits(rows, waste, CACHED_ROW_STEPS, FEW_ROWS)
        else:
            limits = BatchLimits(rows, waste, MOST_ROW_STEPS)
        return plan_batches(items, limits)

    def _run(
        self,
        batch: Sequence[int],
        feeds: Mapping[int, Feeds],
        outputs: list[Outputs | None],
        reasons: dict[int, str],
    ) -> None:
        """Run rows together, and put their answers into `outputs`, or why they have none into `reasons`."""
        requests = [feeds[index] for index in batch]
        try:
            choice = self._engine.choose(requests)
            results = self._engine.run(choice, requests, self._names)
        except (InputError, RunError) as error:
            if len(batch) == 1:
                reasons[batch[0]] = str(error)
                return
            # One of them is not to spoil the others.
            for index in batch:
                self._run([index], feeds, outputs, reasons)
            return
        for index, result in zip(batch, results, strict=True):
            outputs[index] = {name: self._row_array(name, array) for name, array in result.items()}

    def _row_array(self, name: str, array: np.ndarray) -> np.ndarray:
        # A model that squeezes has dropped the axis already.
        if self._has_rows and self._batched_outputs.get(name) == array.ndim:
            row: np.ndarray = array.reshape(array.shape[1:])  # one of no axes stays an array
            return row
        return array


def _holds_rows(tensor: Tensor) -> bool:
    """Whether a tensor can have any number of rows, or has one."""
    if tensor.batch is None:
        return True
    size = tensor.shape[tensor.batch]
    return isinstance(size, str) or size == 1


def _check_shape(array: np.ndarray, tensor: Tensor) -> None:
    """Raises: InputError: a row has another number of axes, another size of a fixed axis, or nothing in it."""
    fits = len(array.shape) == len(tensor.shape)
    if fits:
        for size, expected in zip(array.shape, tensor.shape, strict=True):
            if size == 0 or (isinstance(expected, int) and size != expected):
                fits = False
    if not fits:
        raise InputError(
            f"`{tensor.name}` has shape {list(array.shape)}; in a row, the model takes {tensor} with no size 0."
        )
