"""`check_numbers`: each number among the options of a dataclass is of the kind that it declares, and large enough."""

from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_numbers(options: "DataclassInstance") -> None:
    """Check the fields of options that are declared as `int` or `float`.

    Raises:
        ValueError: an integer that is below 1 or not whole, another number below 0, or none.
    """
    for field in fields(options):
        if field.type not in (int, float):
            continue
        value: Any = getattr(options, field.name)
        kind: Any = Integral if field.type is int else Real
        minimum = 1 if field.type is int else 0
        if isinstance(value, bool) or not isinstance(value, kind):
            needed = "a whole number" if field.type is int else "a number"
            raise ValueError(f"`{field.name}` (={value!r}) must be {needed}.")
        # Not `value < minimum`: that would let NaN through.
        if not value >= minimum:
            raise ValueError(f"`{field.name}` (={value!r}) must be {minimum} or more.")
