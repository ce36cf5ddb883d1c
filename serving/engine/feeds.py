"""`Feeds`: the inputs of one request, checked, and complete."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError
from deploy_rnn.tensor_spec import TensorSpec

from .signature import Signature


@dataclass(frozen=True)
class Feeds:
    """What a graph is given, batch-first.

    Attributes:
        arrays: one for each input.
        rows: 1 if the model has no axis of rows.
        steps: None if the model has no axis of steps, or several of different size.
        others: the sizes of all other axes; only requests that agree in them can share a run.
    """

    arrays: Mapping[str, np.ndarray]
    rows: int
    steps: int | None
    others: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, inputs: Mapping[str, np.ndarray], signature: Signature) -> "Feeds":
        """Check a client's inputs, and fill in what it left out.

        Raises:
            InputError: an input that is missing, unknown, or of the wrong dtype or shape; a length out of range.
        """
        sizes = _sizes(inputs, signature)
        arrays = {
            spec.name: inputs[spec.name] if spec.name in inputs else _default(spec, signature, sizes)
            for spec in signature.outer_inputs
        }
        for name, limit in signature.lengths.items():
            _check_lengths(name, arrays[name], limit, sizes)
        steps = {sizes[name] for name in signature.steps_axes if name in sizes}
        known = {signature.rows_axis} | (signature.steps_axes if len(signature.steps_axes) == 1 else set())
        return cls(
            arrays,
            rows=sizes[signature.rows_axis] if signature.rows_axis else 1,
            steps=steps.pop() if len(steps) == 1 else None,
            others=tuple((name, size) for name, size in sizes.items() if name not in known),
        )


def _sizes(inputs: Mapping[str, np.ndarray], signature: Signature) -> dict[str, int]:
    """The size of every axis that has a name."""
    if not isinstance(inputs, Mapping):
        raise InputError(f"`inputs` is a {type(inputs).__name__}; give a dict of arrays by name.")
    specs = signature.outer_inputs
    names = [spec.name for spec in specs]
    if unknown := [name for name in inputs if name not in names]:
        raise InputError(f"there is no input `{unknown[0]}`; the inputs are {', '.join(names)}.")
    if missing := [name for name in names if name not in inputs and name not in signature.optional]:
        raise InputError(f"input `{missing[0]}` is missing; the inputs are {', '.join(names)}.")
    return _bind([spec for spec in specs if spec.name in inputs], inputs)


def _bind(specs: Sequence[TensorSpec], inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        _check_array(inputs[spec.name], spec)
        for size, expected in zip(inputs[spec.name].shape, spec.shape, strict=True):
            if isinstance(expected, str):
                first, where = sizes.setdefault(expected, (size, spec.name))
                if size != first:
                    raise InputError(f"`{spec.name}` has {expected}={size}, `{where}` has {expected}={first}.")
    return {name: size for name, (size, _) in sizes.items()}


def _check_array(array: np.ndarray, spec: TensorSpec) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"`{spec.name}` is a {type(array).__name__}; give a numpy array of {spec.dtype}.")
    if array.dtype != spec.dtype:
        raise InputError(
            f"`{spec.name}` is {array.dtype}, the graph takes {spec.dtype}; use array.astype({spec.dtype!r})."
        )
    fits = len(array.shape) == len(spec.shape) and all(
        size == expected if isinstance(expected, int) else size > 0
        for size, expected in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InputError(f"`{spec.name}` has shape {list(array.shape)}, the graph takes {spec} with no size 0.")


def _default(spec: Tensor, signature: Signature, sizes: Mapping[str, int]) -> np.ndarray:
    """An optional input that was left out: lengths that count every step, or a state of zeros."""
    shape = tuple(size if isinstance(size, int) else sizes.get(size, 0) for size in spec.shape)
    if 0 in shape:
        raise InputError(f"input `{spec.name}` is missing, and no other input tells the size of {spec}.")
    limit = signature.lengths.get(spec.name, 0)
    return np.full(shape, limit if isinstance(limit, int) else sizes[limit], spec.dtype)


def _check_lengths(name: str, lengths: np.ndarray, limit: int | str, sizes: Mapping[str, int]) -> None:
    """onnxruntime does not: a length of 0, or beyond T, reads memory that is not the row's."""
    most = limit if isinstance(limit, int) else sizes[limit]
    wrong = np.flatnonzero((lengths < 1) | (lengths > most))
    if wrong.size:
        row = int(wrong[0])
        raise InputError(f"`{name}` has {lengths.flat[row]} in row {row}; a row has 1 to {most} steps.")
