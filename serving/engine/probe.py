"""What is tried on a model before its requests share runs: do rows, or the steps beyond a row's end, touch an answer?

A recurrent layer with lengths passes. A model that normalises over the batch, or smooths over time before its layer,
does not, and nothing in its inputs tells: it is found out by running it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deploy_rnn.errors import DeployError

from .feeds import Feeds
from .signature import Signature

Run = Callable[[Sequence[Feeds], int], list[dict[str, np.ndarray]]]
"""Requests to one run of so many steps, and their outputs."""


def example(signature: Signature, rows: int, steps: int, seed: int = 0) -> Feeds:
    """Inputs of any value: random numbers, and 0 or 1 where they are whole."""
    random = np.random.default_rng(seed)
    arrays = {}
    for spec in signature.outer_inputs:
        if spec.name not in signature.optional:
            named = {signature.rows_axis: rows} | dict.fromkeys(signature.steps_axes, steps)
            shape = [size if isinstance(size, int) else named.get(size, 1) for size in spec.shape]
            whole = np.dtype(spec.dtype).kind != "f"
            arrays[spec.name] = (random.integers(2, size=shape) if whole else random.normal(size=shape)).astype(
                spec.dtype
            )
    return Feeds.of(arrays, signature)


def rows_are_independent(run: Run, signature: Signature, steps: int) -> bool:
    """Whether a row gets the same answer alone and beside another."""
    if signature.rows_axis is None:
        return False
    rows = [example(signature, 1, steps, seed) for seed in (1, 2)]
    return _holds(lambda: _same(run(rows, steps), [run([row], steps)[0] for row in rows]))


def padding_is_harmless(run: Run, signature: Signature, steps: int, more: int) -> bool:
    """Whether a row of `steps` steps gets the same answer in a run of `more`."""
    if not signature.has_lengths:
        return False
    row = example(signature, 1, steps, 3)
    return _holds(lambda: _same(run([row], more), run([row], steps)))


def padding_is_not_read(run: Run, signature: Signature, steps: int) -> bool:
    """The same where there is a graph for one number of steps only: whether what is beyond a row's end matters."""
    if not signature.has_lengths or steps == 1:
        return signature.has_lengths
    length = steps // 2
    rows = [_shortened(example(signature, 1, steps, 4), signature, length, beyond) for beyond in (0, 1)]
    ended = [
        {
            name: array[:, :length] if name in signature.in_time else array
            for name, array in run([row], steps)[0].items()
        }
        for row in rows
    ]
    return _holds(lambda: _same(ended[:1], ended[1:]))


def _shortened(row: Feeds, signature: Signature, length: int, beyond: int) -> Feeds:
    arrays = {
        name: np.minimum(array, length) if name in signature.lengths else array.copy()
        for name, array in row.arrays.items()
    }
    for spec in signature.outer_inputs:
        if spec.time is not None:
            arrays[spec.name][:, length:] = beyond
    return Feeds.of(arrays, signature)


def _holds(check: Callable[[], bool]) -> bool:
    """What cannot be run cannot be relied on."""
    try:
        return check()
    except DeployError:
        return False


def _same(found: Sequence[Mapping[str, np.ndarray]], expected: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Up to rounding, which differs with the sizes of a product."""
    pairs = [(a[name], b[name]) for a, b in zip(found, expected, strict=True) for name in a]
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in pairs)
