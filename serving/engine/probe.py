"""Trial runs of a model: does batching or padding change its answers?

A recurrent layer with lengths passes. A model that normalises over the batch, or smooths over time before its layer,
does not, and nothing in its inputs tells: only running it does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deploy_rnn.errors import DeployError
from deploy_rnn.tensor_spec import size_of

from .arrays import Outputs
from .feeds import Feeds
from .signature import Signature

Run = Callable[[Sequence[Feeds], int], Sequence[Outputs]]
"""Run requests together with this number of steps, and return the outputs of each."""


@dataclass(frozen=True)
class TrialResults:
    """What may be done to a model without changing its answers.

    Attributes:
        rows_are_independent: whether rows of several requests may share a run, and rows of a run may be divided.
        padding_is_harmless: whether a row may be padded.
    """

    rows_are_independent: bool
    padding_is_harmless: bool


def try_batching(
    run: Run,
    signature: Signature,
    short: int,
    long: int,
) -> TrialResults:
    """Run a few random rows alone, together and padded: five small runs at most.

    Args:
        run: runs the model.
        signature: of the model.
        short, long: two numbers of steps that it takes; equal if it takes only one.
    """
    if not rows_are_independent(run, signature, short):
        return TrialResults(rows_are_independent=False, padding_is_harmless=False)
    if short == long:
        harmless = padding_is_not_read(run, signature, short)
    else:
        harmless = padding_is_harmless(run, signature, short, long)
    return TrialResults(rows_are_independent=True, padding_is_harmless=harmless)


def rows_are_independent(run: Run, signature: Signature, steps: int) -> bool:
    """Return whether a row gets the same answer alone and next to another row, which is longer if rows have lengths."""
    if signature.batch_axis is None:
        return False
    # A size that neither the inputs nor their lengths tell may depend on what else is in the run.
    if signature.trimmed_axes and len(signature.lengths) != 1:
        return False
    rows = [example(signature, 1, steps, seed) for seed in (1, 2)]
    if signature.lengths:
        # PyTorch trims an output to the longest row of a run; `split` then trims it to that of each request.
        length = max(1, steps // 2)
        rows[0] = _shorten(rows[0], signature, length, padding=0)

    def check() -> bool:
        together = run(rows, steps)
        alone = [run([row], steps)[0] for row in rows]
        return _same(together, alone)

    return _holds(check)


def padding_is_harmless(run: Run, signature: Signature, short: int, long: int) -> bool:
    """Return whether a row of `short` steps gets the same answer in a run of `long` steps."""
    if not signature.lengths_cover_time:
        return False
    row = example(signature, 1, short, seed=3)

    def check() -> bool:
        padded = run([row], long)
        alone = run([row], short)
        return _same(padded, alone)

    return _holds(check)


def padding_is_not_read(run: Run, signature: Signature, steps: int) -> bool:
    """Return whether the values beyond a row's end do not matter, where the graph takes one number of steps only."""
    if not signature.lengths_cover_time:
        return False
    if steps == 1:
        return True  # no row can be shorter
    length = steps // 2
    row = example(signature, 1, steps, seed=4)

    def run_shortened(padding: int) -> Outputs:
        shorter = _shorten(row, signature, length, padding)
        outputs = run([shorter], steps)[0]
        # What the graph gives beyond the row's end may well depend on the padding.
        for name in signature.outputs_over_time:
            outputs[name] = outputs[name][:, :length]
        return outputs

    def check() -> bool:
        zeros = run_shortened(padding=0)
        ones = run_shortened(padding=1)
        return _same([zeros], [ones])

    return _holds(check)


def example(
    signature: Signature,
    rows: int,
    steps: int,
    seed: int = 0,
) -> Feeds:
    """Make inputs of these sizes: random numbers, and 0 or 1 where they are whole, or the indices next to these."""
    random = np.random.default_rng(seed)
    sizes = dict(signature.least_sizes.items()) | dict.fromkeys(signature.time_axes, steps)
    if signature.batch_axis is not None:
        sizes[signature.batch_axis] = rows
    arrays = {}
    for spec in signature.client_inputs:
        if spec.name in signature.optional:
            continue
        shape = [size_of(size, sizes) or 1 for size in spec.shape]
        is_float = np.dtype(spec.dtype).kind == "f"
        least, most = (signature.nearest(spec.name, number) for number in (0, 1))
        values: np.ndarray = (
            random.normal(size=shape)
            if is_float
            else random.integers(least, most, size=shape, endpoint=True)
        )
        arrays[spec.name] = values.astype(spec.dtype)
    return Feeds.of(arrays, signature)


def _shorten(
    row: Feeds,
    signature: Signature,
    length: int,
    padding: int,
) -> Feeds:
    """Return the row with fewer steps, and `padding` in all that is beyond them."""
    arrays = {}
    for spec in signature.client_inputs:
        array = row.arrays[spec.name].copy()
        if spec.name in signature.lengths:
            array = np.minimum(array, length)
        if spec.time is not None:
            array[:, length:] = signature.nearest(spec.name, padding)
        arrays[spec.name] = array
    return Feeds.of(arrays, signature)


def _holds(check: Callable[[], bool]) -> bool:
    """Return the result of a check; False if a run fails, since then nothing is known."""
    try:
        return check()
    except DeployError:
        return False


def _same(results: Sequence[Outputs], expected_results: Sequence[Outputs]) -> bool:
    """Return whether all outputs are equal up to rounding, which differs with the sizes of a product."""
    for outputs, expected_outputs in zip(results, expected_results, strict=True):
        for name, array in outputs.items():
            expected = expected_outputs[name]
            if array.shape != expected.shape:
                return False
            if not np.allclose(array, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                return False
    return True
