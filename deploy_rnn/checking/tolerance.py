"""How much two results differ, and how much they may."""

import math
from dataclasses import dataclass

import numpy as np

# What passes by default, as a share of an element's magnitude (absolute below 1).
TOLERANCE = {"float32": 1e-5, "float64": 1e-9}

# A trained network can amplify rounding (docs/verification.md has figures). Two right float32 runs then
# differ by a few times PyTorch's own distance from float64, which is measured on the same inputs. Up to ROUNDING_LIMIT
# only: beyond that the comparison would say nothing.
ROUNDING_MARGIN = 10.0
ROUNDING_LIMIT = 1e-2


@dataclass(frozen=True)
class Expected:
    """One output of PyTorch, and how far rounding alone may have moved it.

    Attributes:
        values: the output.
        rounding: largest difference from the same model in float64, as a share of the element's magnitude (absolute
            below 1); 0 where that could not be run.
    """

    values: np.ndarray
    rounding: float

    @classmethod
    def of(cls, values: np.ndarray, exact: np.ndarray) -> "Expected":
        """`exact`: the same output in float64, or `values` itself."""
        if not np.issubdtype(values.dtype, np.floating):
            return cls(values, 0.0)
        apart = difference(exact, values) / np.maximum(1.0, magnitudes(values))
        return cls(values, float(apart[np.isfinite(apart)].max(initial=0)))


@dataclass(frozen=True)
class Tolerance:
    """The differences that pass, |a - b| <= atol + rtol * |b|; both None for the default of each output's dtype.

    Raises:
        ValueError: a limit that is negative, infinite or NaN.
    """

    atol: float | None = None
    rtol: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("atol", self.atol), ("rtol", self.rtol)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` (={value}) is no limit; give a number of 0 or more.")

    def allowed(self, expected: Expected) -> np.ndarray:
        """For each element, the largest absolute difference from `expected` that passes."""
        size = magnitudes(expected.values)
        if self.atol is not None or self.rtol is not None:
            return np.asarray((self.atol or 0.0) + (self.rtol or 0.0) * size)
        default = TOLERANCE.get(expected.values.dtype.name)
        if default is None:
            return np.zeros(size.shape)
        share = max(default, min(ROUNDING_MARGIN * expected.rounding, ROUNDING_LIMIT))
        return np.asarray(share * np.maximum(1.0, size))


def magnitudes(values: np.ndarray) -> np.ndarray:
    """|values| in float64, and 0 for an infinity or NaN."""
    size = np.abs(values.astype(np.float64))
    return np.where(np.isfinite(size), size, 0.0)


def difference(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """|expected - actual|, where an infinity or NaN equals itself and differs infinitely from all else."""
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    with np.errstate(invalid="ignore"):
        apart = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    return np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))
