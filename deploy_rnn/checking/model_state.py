"""What a model holds besides its weights, by name: buffers and attributes, and what a call changes of them."""

import copy
import random
from collections import deque
from collections.abc import Iterable, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploy_rnn.copying import evaluation_copy

# What every module has: its children, hooks and the like.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))

State = dict[str, Any]
"""The name of a buffer or attribute, such as "encoder.h" -> its contents, which no later call changes."""


def fresh_copy(model: nn.Module) -> nn.Module:
    """Copy a model, in evaluation mode, with buffers and attributes of its own; its trainable weights are shared.

    Raises:
        ConversionError: something in the model cannot be copied.
    """
    # A parameter that is not trained may be a state.
    shared: dict[int, Any] = {
        id(weight): weight for weight in model.parameters() if weight.requires_grad
    }
    for module in model.modules():
        for value in vars(module).values():
            # A computed weight, as of `torch.nn.utils.weight_norm`; each call computes it again.
            if isinstance(value, Tensor) and value.grad_fn is not None:
                shared[id(value)] = value
    return evaluation_copy(model, shared)


def state_of(model: nn.Module) -> State:
    """Return what the model holds now."""
    state: State = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        values = {**module._parameters, **module._buffers}
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE:
                values[name] = value
        for name, value in values.items():
            state[prefix + name] = _contents(value, set())
    return state


def changed_names(before: State, after: State) -> list[str]:
    """Return the names of what differs."""
    return [
        name
        for name in {**before, **after}
        if name not in before or name not in after or not _equal(before[name], after[name])
    ]


class Dependency:
    """Buffers and attributes that autograd follows through a call: do they reach an output?

    Args:
        model: a copy, which is changed.
        names: of the buffers and attributes; what is not a tensor of floats is left out.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._names: dict[int, str] = {}
        self._leaves: list[Tensor] = []
        for name in names:
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            owner = module._buffers if attribute in module._buffers else vars(module)
            if attribute in owner:
                owner[attribute] = self._followed(name, owner[attribute])

    def names_behind(self, outputs: Iterable[Tensor]) -> list[str]:
        """Return the names of what the outputs were computed from."""
        # The graph is only walked: a model may have overwritten what its gradient needs.
        remaining: list[Any] = [output.grad_fn for output in outputs]
        seen: set[Any] = set()
        names: dict[str, None] = {}
        while remaining:
            node = remaining.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            name = self._names.get(id(getattr(node, "variable", None)))
            if name is not None:
                names[name] = None
            remaining += [following for following, _ in node.next_functions]
        return list(names)

    def _followed(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            leaf = value.detach().clone().requires_grad_()
            self._leaves.append(leaf)
            self._names[id(leaf)] = name
            # Not the leaf itself, which no model may overwrite.
            return leaf.clone()
        if type(value) in (list, tuple):
            return type(value)(self._followed(name, item) for item in value)
        if type(value) is dict:
            return {key: self._followed(name, item) for key, item in value.items()}
        return value


def _contents(value: Any, outer: set[int]) -> Any:
    """What `value` holds, in tensors, numbers, lists and dicts of their own; `outer`: what it is part of."""
    if isinstance(value, nn.Parameter):
        # What was made in inference mode has no version.
        return 0 if value.is_inference() else value._version
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return copy.deepcopy(value.bit_generator.state)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    if id(value) in outer:
        return None
    outer = outer | {id(value)}
    if isinstance(value, Mapping):
        return {key: _contents(item, outer) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [_contents(item, outer) for item in value]
    if isinstance(value, (set, frozenset)):
        return set(value)
    if isinstance(value, (type, FunctionType, MethodType, ModuleType)):
        return id(value)
    if hasattr(value, "__dict__"):
        return {name: _contents(item, outer) for name, item in vars(value).items()}
    return None


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        both_nan = (first != first) & (second != second)
        return bool(((first == second) | both_nan).all())
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        same_keys = first.keys() == second.keys()
        return same_keys and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        same_length = len(first) == len(second)
        return same_length and all(map(_equal, first, second))
    # A number may be NaN.
    return bool(first == second) or (first != first and second != second)
