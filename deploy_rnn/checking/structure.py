"""The results of a model as a file has them: flat, tensors only, each with a name."""

import re
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deploy_rnn.errors import ExportError


def leaf_names(paths: Sequence[Sequence[Any]], prefix: str) -> list[str]:
    """Return a name for the leaf at each path of keys, such as "logits" or "states_0".

    `prefix`: stands before a path that begins with a number, such as "output" for "output_0"; of a single leaf it is
        the name.
    """
    names: list[str] = []
    for number, path in enumerate(paths):
        keys = [str(_key(entry)) for entry in path]
        if all(key.isdecimal() for key in keys):
            # Of tuples within tuples, the number within the whole.
            keys = [prefix, str(number)] if len(paths) > 1 else [prefix]
        elif keys[0].isdecimal():
            keys.insert(0, prefix)
        name = re.sub(r"\W+", "_", "_".join(keys)).strip("_") or prefix
        while name in names:
            name += "_"
        names.append(name)
    return names


def _key(entry: Any) -> Any:
    """The key of a mapping, the number within a sequence, or the name of a field."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def output_names_of(results: Any) -> list[str]:
    """Return the name for each tensor and number among the results of a model that a file has by default.

    That of a dict's key, or of a field; "output" for a single tensor; "output_0" and so on for those of a tuple.
    """
    leaves: Any = pytree.tree_leaves_with_path(without_numbers(results))
    paths = [path for path, leaf in leaves if isinstance(leaf, Tensor)]
    return leaf_names(paths, "output")


def without_numbers(results: Any) -> Any:
    """Return the results of a model with tensors of no axes in place of numbers, and None in place of other values."""
    return pytree.tree_map(_tensor_or_none, results)


def _tensor_or_none(leaf: Any) -> Tensor | None:
    """A number of Python, or one that torch.export computes from sizes, becomes bool, int64, or float32."""
    if isinstance(leaf, Tensor):
        return leaf
    for types, dtype in _NUMBER_DTYPES:
        if isinstance(leaf, types):
            number: Any = leaf
            return torch.scalar_tensor(number, dtype=dtype)
    return None


_NUMBER_DTYPES: list[tuple[tuple[type, ...], torch.dtype]] = [
    ((bool, torch.SymBool), torch.bool),
    ((int, torch.SymInt), torch.int64),
    ((float, torch.SymFloat), torch.float32),
]


def check_known(label: str, value: Any) -> None:
    """Check that PyTorch sees the tensors within a value.

    Raises:
        ExportError: an object, such as a dataclass, that PyTorch does not know how to take apart.
    """
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) or not _holds_tensors(leaf):
            continue
        name = type(leaf).__name__
        remedy = f"register {name} with torch.utils._pytree.register_pytree_node"
        kind = "an object"
        if is_dataclass(leaf):
            remedy = f"call torch.export.register_dataclass({name}) once"
            kind = "a dataclass"
        verb = "is" if leaf is value else "contains"
        raise ExportError(
            f"{label} {verb} {kind} of type `{name}`, in which PyTorch does not look for tensors: {remedy}, or use a "
            "tuple, a NamedTuple or a dict instead."
        )


_CONTAINERS = (dict, OrderedDict, defaultdict, deque)


def class_parts(value: Any) -> dict[str, Any] | None:
    """The parts of an instance of a class that is registered with PyTorch, such as a dataclass; None for others."""
    node = pytree.SUPPORTED_NODES.get(type(value))
    if node is None or isinstance(value, (list, tuple)) or type(value) in _CONTAINERS:
        return None
    parts = node.flatten_fn(value)[0]
    names = [str(number) for number in range(len(parts))]
    if is_dataclass(value):
        names = [field.name for field in fields(value) if getattr(value, field.name) is not None]
    return dict(zip(names, parts, strict=True))


def _holds_tensors(leaf: Any) -> bool:
    if is_dataclass(leaf) and not isinstance(leaf, type):
        values = [getattr(leaf, field.name) for field in fields(leaf)]
    elif isinstance(leaf, dict):
        values = list(leaf.values())
    else:
        values = list(getattr(leaf, "__dict__", {}).values())
    return any(isinstance(item, Tensor) for item in pytree.tree_leaves(values))
