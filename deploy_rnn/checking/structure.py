"""The results of a model as a file has them: flat, tensors only, each with a name."""

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from deploy_rnn.errors import ExportError


def leaf_names(paths: Sequence[Sequence[Any]], prefix: str) -> list[str]:
    """Return a name for the leaf at each path of keys, such as "logits" or "states_0".

    `prefix`: stands before a path that begins with a number, such as "output" for "output_0"; of a single leaf it is
        the name.
    """
    keys_of = [[str(_key(entry)) for entry in path] for path in paths]
    if len(keys_of) == 1 and all(key.isdecimal() for key in keys_of[0]):
        return [prefix]
    names = []
    for keys in keys_of:
        begins_with_number = not keys or keys[0].isdecimal()
        parts = [prefix, *keys] if begins_with_number else keys
        names.append(re.sub(r"\W+", "_", "_".join(parts)).strip("_") or prefix)
    return names


def _key(entry: Any) -> Any:
    """The key of a mapping, the number within a sequence, or the name of a field."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def check_known(label: str, value: Any) -> None:
    """Check that PyTorch sees the tensors within a value.

    Raises:
        ExportError: an object, such as a dataclass, that PyTorch does not know how to take apart.
    """
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) or not _holds_tensors(leaf):
            continue
        name = type(leaf).__name__
        if is_dataclass(leaf):
            remedy = f"call torch.export.register_dataclass({name}) once"
        else:
            remedy = f"register {name} with torch.utils._pytree.register_pytree_node"
        raise ExportError(
            f"{label} has a {name}, whose tensors PyTorch does not see: {remedy}, or use a tuple, a NamedTuple or a "
            "dict in its place."
        )


def _holds_tensors(leaf: Any) -> bool:
    if is_dataclass(leaf) and not isinstance(leaf, type):
        values = [getattr(leaf, field.name) for field in fields(leaf)]
    elif isinstance(leaf, dict):
        values = list(leaf.values())
    else:
        values = list(getattr(leaf, "__dict__", {}).values())
    return any(isinstance(item, Tensor) for item in pytree.tree_leaves(values))
