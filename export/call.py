"""The example call of a model: its arguments by name, its tensors in order, and the same call with other tensors."""

import copy
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Call:
    """`model(*args, **kwargs)`, as `torch.onnx.export` takes it.

    Attributes:
        args: positional arguments: tensors, or tuples, lists and dicts of them.
        kwargs: keyword arguments, likewise.
        arguments: all of them by the parameter names of `model.forward`, in its order.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> "Call":
        """Raises: TypeError: arguments that `model.forward` does not take."""
        args = (args,) if isinstance(args, Tensor) else tuple(args)
        given = dict(kwargs or {})
        try:
            bound = inspect.signature(model.forward).bind(*args, **given)
        except TypeError as error:
            raise TypeError(f"`args` and `kwargs` do not fit {type(model).__name__}.forward: {error}.") from None
        return cls(args, given, dict(bound.arguments))

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order in which the exported graph takes them."""
        return [leaf for leaf in pytree.tree_leaves(self.arguments) if isinstance(leaf, Tensor)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Call":
        """The same call with other tensors."""
        replaced = {id(old): new for old, new in zip(self.tensors, tensors, strict=True)}
        args, kwargs, arguments = pytree.tree_map(
            lambda leaf: replaced.get(id(leaf), leaf), (self.args, self.kwargs, self.arguments)
        )
        return Call(args, kwargs, arguments)

    def shapes(self, per_tensor: Sequence[Any]) -> dict[str, Any]:
        """One entry for each tensor, in the structure that `dynamic_shapes` has."""
        entries = iter(per_tensor)
        return {
            name: pytree.tree_map(lambda leaf: next(entries) if isinstance(leaf, Tensor) else None, value)
            for name, value in self.arguments.items()
        }

    def run(self, model: nn.Module) -> list[Tensor]:
        """The outputs of `model`, flat, in evaluation mode and without gradients; its mode is put back."""
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                outputs = model(*self.args, **self.kwargs)
        finally:
            for module, training in modes:
                module.training = training
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def on_cpu(model: nn.Module, call: Call) -> tuple[nn.Module, Call]:
    """Both on the CPU, where float32 is float32 (cuDNN may round to TensorFloat-32); copied only if they are not."""
    held = itertools.chain(model.parameters(), model.buffers(), call.tensors)
    if all(tensor.device.type == "cpu" for tensor in held):
        return model, call
    return copy.deepcopy(model).cpu(), call.with_tensors([tensor.cpu() for tensor in call.tensors])
