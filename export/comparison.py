"""How much two results differ, and how much they may."""

from dataclasses import dataclass

import numpy as np

# What passes by default, as a share of an output's largest magnitude (absolute below 1).
TOLERANCE = {"float32": 1e-5, "float64": 1e-9}

# A trained network can amplify rounding a thousandfold (docs/verification.md has figures). Two right float32 runs then
# differ by a few times PyTorch's own distance from float64, which is measured on the same inputs. Up to ROUNDING_LIMIT
# only: beyond that the comparison would say nothing.
ROUNDING_MARGIN = 10.0
ROUNDING_LIMIT = 1e-2


@dataclass(frozen=True)
class Expected:
    """One output of PyTorch, and how far rounding alone may have moved it.

    Attributes:
        values: the output.
        magnitude: its largest finite magnitude.
        rounding: largest difference from the same model in float64; 0 where that could not be run.
    """

    values: np.ndarray
    magnitude: float
    rounding: float

    @classmethod
    def of(cls, values: np.ndarray, exact: np.ndarray) -> "Expected":
        """`exact`: the same output in float64, or `values` itself."""
        finite = values[np.isfinite(values)].astype(np.float64)
        rounding = difference(exact, values) if np.issubdtype(values.dtype, np.floating) else np.zeros(1)
        return cls(values, float(np.abs(finite).max(initial=0)), float(rounding[np.isfinite(rounding)].max(initial=0)))


@dataclass(frozen=True)
class Limits:
    """The differences that pass; None for the default of each output's dtype."""

    atol: float | None = None
    rtol: float | None = None

    def allowed(self, expected: Expected) -> float:
        """The largest absolute difference from `expected` that passes."""
        default = TOLERANCE.get(expected.values.dtype.name, 0.0)
        if self.atol is None and self.rtol is None:
            rounding = min(ROUNDING_MARGIN * expected.rounding, ROUNDING_LIMIT * expected.magnitude)
            return max(default, default * expected.magnitude, rounding)
        return max(self.atol or 0.0, (self.rtol or 0.0) * expected.magnitude)


def difference(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """|expected - actual|, where an infinity or NaN equals itself and differs infinitely from all else."""
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    with np.errstate(invalid="ignore"):
        apart = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    return np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))
