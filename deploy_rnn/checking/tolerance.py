"""How much two results differ, and how much they may."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

PRECISIONS = {"float32": 1e-5, "float64": 1e-9, "float16": 1e-5, "int8": 1e-5}
"""Precision of a file -> the difference that passes by default, as a share of an element's size (absolute below 1).

In "float16" the weights are stored in 16 bits, and in "int8" recurrent layers multiply numbers of eight bits; such a
file is compared with a simulation of that, not with the model itself (docs/precision.md)."""

# A trained network can amplify rounding (docs/verification.md has figures). Two correct float32 runs then differ by a
# few times PyTorch's own distance from float64, which is measured on the same inputs. Up to ROUNDING_LIMIT only: beyond
# that the comparison would prove nothing.
ROUNDING_MARGIN = 10.0
ROUNDING_LIMIT = 1e-2

# The largest distance of a few simulations that round numbers near the middle of two levels to either side is how far
# right files in eight bits may be apart; another file may be somewhat further. Beyond the limit nothing would be
# proved: 8-bit products that overflow on the processor have been 0.06 and more off.
SIDES_MARGIN = 4.0
SIDES_LIMIT = 5e-2

HALF_PRECISIONS = {"float16": 2e-2, "bfloat16": 5e-2}
"""Half precision in which a part of a model computes -> the difference that then passes by default. About twenty and
six times what one rounding does there: a recurrent layer passes its own on from step to step."""


def model_precision(model: nn.Module) -> str:
    """Return the precision in which a model computes: "float64" if all its weights have it, else "float32"."""
    dtypes = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    return "float64" if dtypes == {torch.float64} else "float32"


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
        if not np.issubdtype(values.dtype, np.inexact):
            return cls(values, 0.0)
        shares = difference(exact, values) / np.maximum(1.0, magnitudes(values))
        finite_shares = shares[np.isfinite(shares)]
        return cls(values, float(finite_shares.max(initial=0)))


@dataclass(frozen=True)
class Tolerance:
    """The differences that pass: |a - b| <= atol + rtol * |b|.

    Attributes:
        atol, rtol: the limits; both None for the default of `precision`.
        precision: in which the file computes, one of `PRECISIONS`.
        half: the coarsest half precision in which a part of the model computes, one of `HALF_PRECISIONS`; None if no
            part does.

    Raises:
        ValueError: a limit that is negative, infinite or NaN; an unknown precision.
    """

    atol: float | None = None
    rtol: float | None = None
    precision: str = "float32"
    half: str | None = None

    def __post_init__(self) -> None:
        _check_limit("atol", self.atol)
        _check_limit("rtol", self.rtol)
        check_precision(self.precision)

    def with_half(self, half: str | None) -> "Tolerance":
        """The same for a model with parts in that half precision, if any."""
        return replace(self, half=half)

    @property
    def default(self) -> float:
        """The difference that passes by default, wherever PyTorch's own rounding does not allow more."""
        share = PRECISIONS[self.precision]
        return share if self.half is None else max(share, HALF_PRECISIONS[self.half])

    @property
    def margin(self) -> float:
        """How many times the measured rounding passes."""
        return SIDES_MARGIN if self.precision == "int8" else ROUNDING_MARGIN

    @property
    def limit(self) -> float:
        """What passes at most for the sake of rounding; parts in half precision may differ by more."""
        return SIDES_LIMIT if self.precision == "int8" else ROUNDING_LIMIT

    @property
    def half_parts(self) -> str:
        """What a report says of parts in half precision, such as "float16 parts: 0.02"; empty if there are none."""
        if self.half is None:
            return ""
        own_limits = self.atol is not None or self.rtol is not None
        return f"{self.half} parts: {'as asked' if own_limits else f'{self.default:g}'}"

    def allowed(self, expected: Expected) -> np.ndarray:
        """Return, for each element, the largest absolute difference from `expected` that passes."""
        size = magnitudes(expected.values)
        if self.atol is not None or self.rtol is not None:
            atol = self.atol or 0.0
            rtol = self.rtol or 0.0
            return np.asarray(atol + rtol * size)
        # Whole numbers and booleans must be equal.
        if not np.issubdtype(expected.values.dtype, np.inexact):
            return np.zeros(size.shape)
        measured = min(self.margin * expected.rounding, self.limit)
        share = max(self.default, measured)
        return np.asarray(share * np.maximum(1.0, size))

    def __str__(self) -> str:
        """In words."""
        if self.atol is not None or self.rtol is not None:
            parts = []
            if self.atol:
                parts.append(f"{self.atol:g}")
            if self.rtol:
                parts.append(f"{self.rtol:g} of its size")
            limit = " plus ".join(parts)
            return (
                f"Every number may differ by {limit}." if limit else "Every number must be equal."
            )
        default = self.default
        if self.half is not None:
            return (
                f"Parts of the model compute in {self.half}: every number may differ by {default:g}, or by {default:g} "
                "of its size where it is larger than 1. Whole numbers and booleans must be equal."
            )
        if self.precision == "int8":
            return (
                f"Every number may differ by {default:g} from that of a simulation of the file, or by {default:g} of "
                "its size where it is larger than 1; by more if a number to be rounded was near the middle of two "
                f"levels: {SIDES_MARGIN:g} times what rounding it to the other side changes, at most "
                f"{SIDES_LIMIT:.0%}. Whole numbers and booleans must be equal."
            )
        of_what = ""
        if self.precision == "float16":
            of_what = " from that of the model with its weights rounded to float16"
        return (
            f"Every number may differ by {default:g}{of_what}, or by {default:g} of its size where it is larger than "
            f"1; by more if rounding has moved PyTorch's own result: {ROUNDING_MARGIN:g} times its distance from "
            f"float64, at most {ROUNDING_LIMIT:.0%}. Whole numbers and booleans must be equal."
        )


def _check_limit(name: str, value: float | None) -> None:
    if value is None:
        return
    if not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` (={value!r}) must be a number, got {type(value).__name__}.")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"`{name}` (={value}) must be finite and >= 0.")


def check_precision(precision: str) -> None:
    """Raises: ValueError: an unknown precision."""
    if precision not in PRECISIONS:
        *others, last = map(repr, PRECISIONS)
        offered = f"{', '.join(others)} or {last}"
        raise ValueError(f"`precision` (={precision!r}) must be {offered}.")


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor for numpy, which lacks bfloat16: float32 holds the same numbers."""
    tensor = tensor.detach()
    array: np.ndarray = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def magnitudes(values: np.ndarray) -> np.ndarray:
    """|values| in float64, and 0 for an infinity or NaN."""
    size = np.abs(_widened(values))
    return np.where(np.isfinite(size), size, 0.0)


def difference(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """|expected - actual|, where an infinity or NaN equals itself and differs infinitely from everything else."""
    both_nan = np.isnan(expected) & np.isnan(actual)
    same = (expected == actual) | both_nan
    with np.errstate(invalid="ignore"):
        distance = np.abs(_widened(expected) - _widened(actual))
    distance = np.where(np.isfinite(distance), distance, np.inf)
    return np.where(same, 0.0, distance)


def _widened(values: np.ndarray) -> np.ndarray:
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)
