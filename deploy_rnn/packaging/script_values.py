"""Values as TorchScript text: the constants in an exported graph, typed as the operator that takes them has it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from deploy_rnn.errors import ExportError

Name = Callable[[fx.Node], str]
"""The name of a node's value in the text."""


def typed_text(value: Any, type_name: str, name: Name) -> str:
    """An argument of an operator, for a parameter of that type, as its schema writes it: "Optional[List[int]]".

    TorchScript is strict: it takes no 0 for a float, and an empty list only with its type.
    """
    if value is None:
        return "None"
    type_name = _without_optional(type_name)
    if isinstance(value, (list, tuple)):
        item_type = type_name.removeprefix("List[").removesuffix("]")
        items = ", ".join(typed_text(item, item_type, name) for item in value)
        if items and not item_type.startswith("Optional"):
            return f"[{items}]"
        return f"torch.jit.annotate(List[{item_type}], [{items}])"
    if isinstance(value, fx.Node):
        text = name(value)
        is_number = isinstance(value.meta.get("val"), (int, torch.SymInt))
        return f"float({text})" if type_name == "float" and is_number else text
    if type_name == "float" and isinstance(value, int):
        return constant_text(float(value))
    return constant_text(value)


def constant_text(value: Any) -> str:
    """A constant of Python or torch. Raises: ExportError: TorchScript has no such constant."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, complex):
        return f"complex({constant_text(value.real)}, {constant_text(value.imag)})"
    if isinstance(value, torch.device):
        return f"torch.device('{value}')"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise ExportError(f"TorchScript has no constant for {value!r}.")


def _without_optional(type_name: str) -> str:
    if type_name.startswith("Optional["):
        return type_name.removeprefix("Optional[").removesuffix("]")
    return type_name
