"""`ErrorMetric`: what rounding may cost, in a measure of the user's own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from deploy_rnn.errors import ExportError
from deploy_rnn.model_errors import error_text

from .cost import Deviation

Measure = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], float]
"""Outputs of the model, outputs of the file, in the order of the model -> how wrong these are; 0 if they are right."""


@dataclass(frozen=True)
class ErrorMetric:
    """A bound in a measure of the user's own: `max_error=ErrorMetric(share_of_changed_words, 0.01)`.

    It is computed on the example, so give one of real data, as large as you like: random inputs are no task.

    Args:
        measure: the outputs of the model in float64, the outputs of the rounded file, each a list of arrays in the
            order of the model's outputs -> a number, 0 if they agree.
        limit: the largest number that passes.

    Raises:
        ValueError: a limit that is not finite, or is below 0; or `measure` cannot be called.
    """

    measure: Measure
    limit: float

    def __post_init__(self) -> None:
        if not callable(self.measure):
            raise ValueError(f"`measure` (={self.measure!r}) must be a function.")
        if not is_finite_number(self.limit) or self.limit < 0:
            raise ValueError(f"`limit` (={self.limit!r}) must be finite and >= 0.")

    @property
    def name(self) -> str:
        """What the measure is called."""
        return str(getattr(self.measure, "__name__", type(self.measure).__name__))

    def of(self, deviation: Deviation) -> "MeasuredError":
        """The error of one call.

        Raises:
            ExportError: the measure fails, or returns something else than a number, or NaN.
        """
        try:
            result = self.measure(deviation.exact, deviation.rounded)
        except Exception as error:  # whatever a user's function raises
            raise ExportError(
                f"`{self.name}` in `max_error` fails on the example: {error_text(error)}"
            ) from error
        try:
            value = float(result)
        except (TypeError, ValueError):
            value = math.nan
        if math.isnan(value):
            raise ExportError(
                f"`{self.name}` in `max_error` returned {result!r}; it must return a number."
            )
        return MeasuredError(self.name, value, self.limit)


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number of Python or numpy, but not a bool, NaN or infinity."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class MeasuredError:
    """What a measure of the user's own gives on the example.

    Attributes:
        name: of the measure.
        value: what it returned.
        limit: what it may return at most.
    """

    name: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.3g} on the example, at most {self.limit:g}"
