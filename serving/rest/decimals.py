"""The shortest decimals that stand for floats of 32 and 16 bits, found for all of a tensor at once."""

from typing import Any

import numpy as np

# Digits of which the most tell any two values apart, and the fewest are kept by every value: of FP16, those next to 0.
_DIGITS = {"float32": (9, 8, 7, 6), "float16": (5, 4, 3, 2, 1)}

# Up to this one, float64 has powers of 10 exactly, so that a quotient is the float64 nearest to its decimal.
_POWERS = np.array([float(f"1e{power}") for power in range(23)])

_FEW = 32
"""So many elements are quicker one by one."""

_SMALLEST = 1e-13
_LARGEST = 1e22


def shortest_values(array: np.ndarray) -> list[Any]:
    """The elements of a finite array, row by row, as Python's numbers.

    A float has the shortest decimal that its own dtype reads as the same bits: 0.1 rather than 0.10000000149011612,
    which is what float64 needs for the same number.
    """
    if array.dtype.name not in _DIGITS:
        values: list[Any] = array.ravel().tolist()
        return values
    given = array.ravel()
    if given.size <= _FEW:
        return [float(str(value)) for value in given]
    exact = given.astype(np.float64)
    sizes = np.abs(exact)
    in_range = (sizes >= _SMALLEST) & (sizes < _LARGEST)
    exponents = np.floor(np.log10(sizes, where=in_range, out=np.zeros_like(sizes))).astype(int)
    shortest = exact.copy()
    for digits in _DIGITS[array.dtype.name]:
        power = digits - 1 - exponents
        above = _POWERS[np.maximum(power, 0)]
        below = _POWERS[np.maximum(-power, 0)]
        # One of the two is 1.
        rounded = np.rint(exact / below * above) / above * below
        with np.errstate(over="ignore"):  # 65504 of FP16, rounded up
            read = rounded.astype(array.dtype)
        is_same = in_range & (read == given)
        shortest[is_same] = rounded[is_same]
    # Few are so small or so large. Not all at once, which would hold up every other thread.
    for index in np.flatnonzero(~in_range & (sizes > 0)):
        shortest[index] = float(str(given[index]))
    return list(shortest.tolist())
