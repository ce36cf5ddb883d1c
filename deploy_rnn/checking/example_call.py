"""The example call of a model: its arguments by name, its tensors in order, and the same call with other tensors."""

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.errors import ExportError

Axes = dict[int, Any]
"""What is asked of one tensor's axes: number (from 0) -> a name, or a `torch.export.Dim`; others are fixed."""


@dataclass(frozen=True)
class ExampleCall:
    """`model(*args, **kwargs)`, as `torch.onnx.export` takes it, in the order of the parameters of `model.forward`.

    There is one order of tensors, whatever the order in which the keywords were given: that of `tensors`, of the
    arguments passed to PyTorch, and so of the inputs of the exported graph.
    """

    bound: inspect.BoundArguments

    @classmethod
    def of(cls, model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> "ExampleCall":
        """Raises: TypeError: arguments that `model.forward` does not take, or none of them a tensor."""
        if isinstance(args, Mapping):
            raise TypeError("`args` is a dict; give keyword arguments as `kwargs`, or a dict argument as `args=(it,)`.")
        args = (args,) if isinstance(args, Tensor) else tuple(args)
        signature = inspect.signature(model.forward)
        if kwargs is None and args and isinstance(args[-1], Mapping) and args[-1].keys() <= signature.parameters.keys():
            args, kwargs = args[:-1], args[-1]  # as torch.onnx.export takes it
        try:
            bound = signature.bind(*args, **(kwargs or {}))
        except TypeError as error:
            raise TypeError(f"`args` and `kwargs` do not fit {type(model).__name__}.forward: {error}.") from None
        for name, parameter in signature.parameters.items():
            if parameter.default is None and bound.arguments.get(name, 0) is None:
                del bound.arguments[name]  # an optional argument that is not given
        call = cls(bound)
        if not call.tensors:
            kinds = ", ".join(type(leaf).__name__ for leaf in pytree.tree_leaves(args)) or "nothing"
            raise TypeError(f"`args` has no torch.Tensor in it (but {kinds}); give example tensors.")
        if empty := [list(tensor.shape) for tensor in call.tensors if not tensor.numel()]:
            raise ExportError(f"an example tensor of shape {empty[0]} is empty; give every axis a size of 1 or more.")
        # torch.export takes one tensor given twice for one input.
        return call.with_tensors([tensor.view_as(tensor) for tensor in call.tensors])

    @property
    def arguments(self) -> dict[str, Any]:
        """Every argument, by the name of its parameter."""
        return self.bound.arguments

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor."""
        return [leaf for leaf in pytree.tree_leaves(self.arguments) if isinstance(leaf, Tensor)]

    @property
    def names(self) -> list[str]:
        """What the caller knows each tensor as, such as "hx[0]"."""
        leaves: Any = pytree.tree_leaves_with_path(self.arguments)
        return [f"{path[0].key}{pytree.keystr(path[1:])}" for path, leaf in leaves if isinstance(leaf, Tensor)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "ExampleCall":
        """The same call with other tensors."""
        return ExampleCall(inspect.BoundArguments(self.bound.signature, self._mapped(tensors, other=lambda leaf: leaf)))

    def with_argument(self, name: str, value: Any) -> "ExampleCall":
        """The same call with another value for one argument."""
        given = {**self.arguments, name: value}
        in_order = {each: given[each] for each in self.bound.signature.parameters if each in given}
        return ExampleCall(inspect.BoundArguments(self.bound.signature, in_order))

    def shapes(self, axes: Sequence[Axes]) -> dict[str, Any]:
        """One entry for each tensor, in the structure that `dynamic_shapes` has."""
        return self._mapped(axes, other=lambda leaf: None)

    def _mapped(self, per_tensor: Sequence[Any], other: Callable[[Any], Any]) -> dict[str, Any]:
        entries = iter(per_tensor)
        mapped: dict[str, Any] = pytree.tree_map(
            lambda leaf: next(entries) if isinstance(leaf, Tensor) else other(leaf), self.arguments
        )
        return mapped

    def axes(self, dynamic_shapes: Any) -> list[Axes]:
        """What `dynamic_shapes` asks of each tensor.

        Raises:
            ExportError: its structure is not that of the arguments, or it names an axis that is not there.
        """
        if isinstance(dynamic_shapes, (tuple, list)):
            dynamic_shapes = dict(zip(self.arguments, dynamic_shapes, strict=False))
        return list(_axes("the arguments", self.arguments, dynamic_shapes or None))

    def run(self, model: Callable[..., Any]) -> list[Tensor]:
        """The outputs of `model`, flat and without gradients."""
        with torch.no_grad():
            outputs = model(*self.bound.args, **self.bound.kwargs)
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _axes(where: str, value: Any, asked: Any) -> Iterator[Axes]:
    """Walk an argument and what is asked of it side by side."""
    if isinstance(value, Tensor):
        yield _tensor_axes(where, value, asked)
    elif isinstance(value, Mapping) and isinstance(asked, (Mapping, type(None))):
        if unknown := [name for name in asked or {} if name not in value]:
            raise ExportError(f"`dynamic_shapes` names `{unknown[0]}`; {where} are {', '.join(map(str, value))}.")
        for name, each in value.items():
            yield from _axes(f"`{name}`", each, (asked or {}).get(name))
    elif isinstance(value, (tuple, list)) and isinstance(asked, (tuple, list, type(None))):
        for number, (each, part) in enumerate(itertools.zip_longest(value, asked or ())):
            yield from _axes(f"{where}[{number}]", each, part)
    elif asked is None:
        yield from ({} for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    else:
        raise ExportError(f"`dynamic_shapes` has {asked!r} for {where}, which is a {type(value).__name__}.")


def _tensor_axes(where: str, tensor: Tensor, asked: Any) -> Axes:
    if isinstance(asked, (tuple, list)) and len(asked) == tensor.dim():
        asked = dict(enumerate(asked))
    if not isinstance(asked, (Mapping, type(None))):
        raise ExportError(f"`dynamic_shapes` has {asked!r} for {where}; give {{axis: name}}, such as {{0: 'B'}}.")
    axes: Axes = {}
    for axis, dim in (asked or {}).items():
        if not -tensor.dim() <= axis < tensor.dim():
            raise ExportError(f"`dynamic_shapes` has axis {axis} for {where}, which has {tensor.dim()} axes.")
        if dim is not None and not isinstance(dim, int) and dim is not torch.export.Dim.STATIC:
            axes[axis % tensor.dim()] = dim
    return axes


def on_cpu(model: nn.Module, call: ExampleCall) -> tuple[nn.Module, ExampleCall]:
    """Both on the CPU, where float32 is float32 (cuDNN may round to TensorFloat-32); copied only if they are not."""
    held = itertools.chain(model.parameters(), model.buffers(), call.tensors)
    if all(tensor.device.type == "cpu" for tensor in held):
        return model, call
    return copy.deepcopy(model).cpu(), call.with_tensors([tensor.cpu() for tensor in call.tensors])
