"""`Feeds`: the inputs of one request, checked and complete."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError
from deploy_rnn.tensor_spec import IndexRange, TensorSpec

from .arrays import Arrays
from .signature import Signature


@dataclass(frozen=True)
class Feeds:
    """The inputs of one request, in the layout of clients.

    Attributes:
        arrays: one for each input.
        rows: size of the batch axis; 1 if the model has none.
        steps: size of the time axis; None if the model has none, or several of different size.
        other_sizes: names and sizes of all other dynamic axes; only requests that agree in them can share a run.
        step_ranges: which of the ranges of the model's time axis have its steps; only requests that agree in them can
            share a run.
    """

    arrays: Arrays
    rows: int
    steps: int | None
    other_sizes: tuple[tuple[str, int], ...] = ()
    step_ranges: tuple[bool, ...] = ()

    @classmethod
    def of(cls, inputs: Arrays, signature: Signature, shapes: "Shapes | None" = None) -> Self:
        """Check a client's inputs, and fill in those that it left out.

        Args:
            shapes: those of the inputs, if they are known.

        Raises:
            InputError: an input that is missing, unknown, or of the wrong dtype or shape; a length, or an index of a
                step that counts, out of range.
        """
        if shapes is None:
            shapes = Shapes.of(inputs, signature)
        arrays = {**inputs, **shapes.defaults}
        for name, limit in shapes.limits.items():
            _check_lengths(name, arrays[name], limit)
        for name, limits in signature.index_ranges.items():
            if not _are_within(arrays[name], limits):
                arrays[name] = _checked_indices(name, arrays, limits, signature)
        return cls(arrays, shapes.rows, shapes.steps, shapes.other_sizes, shapes.step_ranges)

    def rows_of(self, rows: slice | np.ndarray) -> Self:
        """Some of its rows, where every input has a batch axis.

        Args:
            rows: a slice, or their indices.
        """
        arrays = {name: array[rows] for name, array in self.arrays.items()}
        count = len(next(iter(arrays.values())))
        return replace(self, arrays=arrays, rows=count)


@dataclass(frozen=True, eq=False)
class Shapes:
    """What the names, dtypes and shapes of a request's inputs tell, checked; many requests have the same.

    Attributes:
        rows, steps, other_sizes, step_ranges: as those of `Feeds`.
        defaults: the inputs that were left out; read-only.
        limits: inputs that are lengths, and were not -> the longest that a row can have; None for any.
    """

    rows: int
    steps: int | None
    other_sizes: tuple[tuple[str, int], ...]
    defaults: Arrays
    limits: Mapping[str, int | None]
    step_ranges: tuple[bool, ...] = ()

    @classmethod
    def of(cls, inputs: Arrays, signature: Signature) -> Self:
        """
        Raises:
            InputError: an input that is missing, unknown, or of the wrong dtype or shape.
        """
        sizes = _axis_sizes(inputs, signature)
        defaults = {}
        for spec in signature.client_inputs:
            if spec.name not in inputs:
                defaults[spec.name] = _default(spec, signature, sizes)
        limits = {}
        for name, time_axis in signature.lengths.items():
            if name in inputs:
                limits[name] = _limit(time_axis, sizes)
        rows = sizes[signature.batch_axis] if signature.batch_axis else 1
        step_counts = {sizes[axis] for axis in signature.time_axes if axis in sizes}
        steps = step_counts.pop() if len(step_counts) == 1 else None
        run_axes = {signature.batch_axis}
        # Several time axes are not padded: requests must agree in each of them.
        if len(signature.time_axes) == 1:
            run_axes |= signature.time_axes
        other_sizes = [(axis, size) for axis, size in sizes.items() if axis not in run_axes]
        return cls(rows, steps, tuple(other_sizes), defaults, limits)


def _axis_sizes(inputs: Arrays, signature: Signature) -> dict[str, int]:
    """Check names, dtypes and shapes, and return the size of every dynamic axis."""
    if not isinstance(inputs, Mapping):
        raise InputError(f"`inputs` must be a dict of arrays by name, got {type(inputs).__name__}.")
    specs = signature.client_inputs
    names = [spec.name for spec in specs]
    for name in inputs:
        if name not in names:
            raise InputError(f"there is no input `{name}`; the inputs are {', '.join(names)}.")
    for name in names:
        if name not in inputs and name not in signature.optional:
            raise InputError(f"input `{name}` is missing; the inputs are {', '.join(names)}.")
    present_specs = [spec for spec in specs if spec.name in inputs]
    return _bind_sizes(present_specs, inputs)


def _bind_sizes(specs: Sequence[TensorSpec], inputs: Arrays) -> dict[str, int]:
    """Return dynamic axis -> its size, which must be the same in every array that has the axis."""
    sizes: dict[str, int] = {}
    owners: dict[str, TensorSpec] = {}  # the first input that has the axis
    for spec in specs:
        array = inputs[spec.name]
        _check_array(array, spec)
        for size, axis in zip(array.shape, spec.shape, strict=True):
            if isinstance(axis, int):
                continue  # a fixed size, which `_check_array` has compared
            if axis not in sizes:
                sizes[axis] = size
                owners[axis] = spec
            elif size != sizes[axis]:
                owner = owners[axis]
                layouts = [*filter(None, (_layout(owner), _layout(spec)))]
                raise InputError(
                    f"`{spec.name}` has {axis}={size}, `{owner.name}` has {axis}={sizes[axis]}."
                    f"{f' {layouts[0]}' if layouts else ''}"
                )
    return sizes


def _layout(spec: TensorSpec) -> str:
    """Whether the batch or the steps come first in an input that has both; empty for others."""
    if not {"B", "T"} <= set(spec.shape):
        return ""
    first = "batch" if spec.shape.index("B") < spec.shape.index("T") else "time"
    return f"This model takes {first} first: {spec}."


def _check_array(array: np.ndarray, spec: TensorSpec) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"`{spec.name}` must be a numpy array of {spec.dtype}, got {type(array).__name__}."
        )
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(
            f"`{spec.name}` is a masked array, whose mask would be ignored; use array.filled(VALUE)."
        )
    if array.dtype != spec.dtype:
        raise InputError(
            f"`{spec.name}` is {array.dtype}, the graph takes {spec.dtype}; use array.astype({spec.dtype!r})."
        )
    if not _fits(array.shape, spec.shape):
        text = (
            f"`{spec.name}` has shape {list(array.shape)}, the graph takes {spec} with no size 0."
        )
        raise InputError(f"{text} {_layout(spec)}".rstrip())


def _fits(shape: Sequence[int], expected_shape: Sequence[int | str]) -> bool:
    if len(shape) != len(expected_shape):
        return False
    for size, expected in zip(shape, expected_shape, strict=True):
        if isinstance(expected, int):
            if size != expected:
                return False
        elif size == 0:
            return False
    return True


def _default(
    spec: Tensor,
    signature: Signature,
    sizes: Mapping[str, int],
) -> np.ndarray:
    """Return an optional input that was left out: lengths that count every step, or a state of zeros.

    Whatever its size, it takes no memory: it is one number everywhere.
    """
    shape = [size if isinstance(size, int) else sizes.get(size, 0) for size in spec.shape]
    if 0 in shape:
        raise InputError(
            f"input `{spec.name}` is missing, and no other input tells the size of {spec}."
        )
    if spec.name not in signature.lengths:
        return _everywhere(0, shape, spec.dtype)
    time_axis = signature.lengths[spec.name]
    limit = _limit(time_axis, sizes)
    if limit is None:
        raise InputError(
            f"input `{spec.name}` is missing; the model computes how many steps a row has at most."
        )
    return _everywhere(limit, shape, spec.dtype)


def _everywhere(number: int, shape: Sequence[int], dtype: str) -> np.ndarray:
    return np.broadcast_to(np.array(number, dtype), shape)


def _limit(time_axis: int | str, sizes: Mapping[str, int]) -> int | None:
    """Return the longest length that a row can have; None if no input has the axis that limits it."""
    if isinstance(time_axis, int):
        return time_axis
    return sizes.get(time_axis)


def _check_lengths(name: str, lengths: np.ndarray, limit: int | None) -> None:
    """Check what onnxruntime does not: a length of 0, or beyond T, makes it read memory that is not the row's."""
    if lengths.min() >= 1 and (limit is None or lengths.max() <= limit):
        return
    is_right = lengths >= 1
    if limit is not None:
        is_right &= lengths <= limit
    wrong_rows = np.flatnonzero(~is_right)
    if wrong_rows.size:
        row = int(wrong_rows[0])
        rule = "1 step or more" if limit is None else f"1 to {limit} steps"
        raise InputError(f"`{name}` has {lengths.flat[row]} in row {row}; a row has {rule}.")


def _are_within(indices: np.ndarray, limits: IndexRange) -> bool:
    if limits.least == 0:
        # Read as unsigned, a number below 0 is a large one: once through the array is enough.
        return int(indices.view(f"u{indices.itemsize}").max()) <= limits.most
    return int(indices.min()) >= limits.least and int(indices.max()) <= limits.most


def _checked_indices(
    name: str, arrays: Arrays, limits: IndexRange, signature: Signature
) -> np.ndarray:
    """Return indices of which some are out of range, with others in the place of these, which are padding.

    Raises:
        InputError: one of them is not padding. onnxruntime takes -1 for the last row of a table; PyTorch refuses it.
    """
    indices = arrays[name]
    is_wrong = (indices < limits.least) | (indices > limits.most)
    counted = is_wrong
    if name in signature.padded_axes:
        lengths_name, row_axis, time_axis = signature.padded_axes[name]
        steps = np.arange(indices.shape[time_axis])
        is_padding = steps >= arrays[lengths_name][:, None]  # (B, T)
        axes = (row_axis, time_axis)
        others = tuple(axis for axis in range(indices.ndim) if axis not in axes)
        if row_axis > time_axis:
            is_padding = is_padding.T
        counted = is_wrong & ~np.expand_dims(is_padding, others)
    places = np.argwhere(counted)
    if places.size:
        place = places[0].tolist()
        raise InputError(
            f"`{name}` has {indices[tuple(place)]} at {place}; must be from {limits}: it is an index into a table."
        )
    return np.where(is_wrong, indices.dtype.type(signature.nearest(name, 0)), indices)
