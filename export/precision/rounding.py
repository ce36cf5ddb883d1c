"""How numbers become eight bits: the one definition, for the forms that write it and the simulation that computes it.

    row @ W.T  =  limit * scale * ((q - 128) @ Q)        q: row, in 256 levels from -limit to limit; Q: W.T in 127

Q has a scale for each column and 7 bits, -63 to 63: x86 processors without VNNI add two products of 8 bits in 16, and
2 * 255 * 127 does not fit, but 2 * 255 * 63 does. So a file is right on every processor.

A row has the limit of its own largest number, or one that is known: it does not depend on the rows, or the steps, that
it is computed with.
"""

import numpy as np

WEIGHT_LEVELS = 63
"""The largest magnitude of a rounded weight."""

TABLE_LEVELS = 127
"""That of a rounded number of an embedding."""

ROW_LEVELS = 127
"""That of a rounded number of a row, without its zero point."""

ROW_ZERO = 128
"""The level that stands for 0: onnxruntime multiplies numbers without a sign by weights with one, and is a hundred
times slower with two signs."""

ROW_STEP = np.float32(1 / ROW_LEVELS)
"""The distance of two levels of a row, as a share of its limit."""

SMALLEST_LIMIT = np.float32(1e-30)
"""The limit of a row of zeros."""


def rounded_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W (M, K) in float32 -> Q (K, M) in int8, and the float32 number of a step of each column, (M,)."""
    levels, steps = _rounded(weight, WEIGHT_LEVELS)
    return np.ascontiguousarray(levels.T), steps[:, 0]


def rounded_table(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An embedding (V, N) in float32 -> levels (V, N) in int8, and the float32 number of a step of each row, (V, 1).

    Nothing is multiplied there, so that all eight bits are used.
    """
    return _rounded(table, TABLE_LEVELS)


def _rounded(vectors: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Round each row to whole numbers of magnitude `most` or less: -> these, (M, K), and their step, (M, 1)."""
    largest = np.abs(vectors).max(axis=1, initial=0, keepdims=True)
    # A row of zeros has any scale.
    steps = np.where(largest > 0, largest / most, 1).astype(np.float32)
    levels = np.round(vectors / steps).clip(-most, most)
    return levels.astype(np.int8), steps
