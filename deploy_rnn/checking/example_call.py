"""The example call of a model: its arguments by name, its tensors in order, and the same call with other tensors."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.checking.structure import (
    check_known,
    class_parts,
    leaf_names,
    output_names_of,
    without_numbers,
)
from deploy_rnn.copying import copy_model
from deploy_rnn.errors import ExportError

Axes = dict[int, Any]
"""The dynamic axes of one tensor: number (from 0) -> a name, or a `torch.export.Dim`; other axes are fixed."""


@dataclass(frozen=True)
class ExampleCall:
    """`model(*args, **kwargs)`, as `torch.onnx.export` takes it, in the order of the parameters of `model.forward`.

    There is one order of tensors, however the keywords were ordered: that of `tensors`, of the arguments passed to
    PyTorch, and so of the inputs of the exported graph.
    """

    bound: inspect.BoundArguments

    @classmethod
    def of(
        cls, model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None
    ) -> "ExampleCall":
        """Bind the arguments to the parameters of `model.forward`.

        Raises:
            TypeError: arguments that `model.forward` does not take, or none of them a tensor.
            ExportError: an empty tensor, or an object whose tensors PyTorch does not see.
        """
        if isinstance(args, Mapping):
            raise TypeError(
                "`args` is a dict; give keyword arguments as `kwargs`, or a dict argument as `args=(it,)`."
            )
        if not isinstance(args, (tuple, list, Tensor)):
            raise TypeError(
                f"`args` must be a tuple of arguments, or one tensor, got {type(args).__name__}."
            )
        if not isinstance(kwargs, (Mapping, type(None))):
            raise TypeError(
                f"`kwargs` must be a dict of arguments by name, got {type(kwargs).__name__}."
            )
        args = (args,) if isinstance(args, Tensor) else tuple(args)
        if isinstance(model.forward, (torch.ScriptMethod, torch.ScriptFunction)):
            raise TypeError(
                "`model` has a `forward` without Python source, that of a TorchScript module; give the torch.nn.Module "
                "that was scripted or traced."
            )
        signature = inspect.signature(model.forward)
        # As for torch.onnx.export, a dict of parameters may end `args` instead of `kwargs`.
        if (
            kwargs is None
            and args
            and isinstance(args[-1], Mapping)
            and args[-1].keys() <= signature.parameters.keys()
        ):
            *args, kwargs = args
        try:
            bound = signature.bind(*args, **(kwargs or {}))
        except TypeError as error:
            arguments = "`args` and `kwargs` do" if kwargs else "`args` does"
            raise TypeError(
                f"{arguments} not fit {type(model).__name__}.forward: {error}."
            ) from None
        _check_keywords(model, bound)
        # None for an optional argument is the same as leaving it out.
        for name, parameter in signature.parameters.items():
            if parameter.default is None and bound.arguments.get(name, 0) is None:
                del bound.arguments[name]
        for name, value in bound.arguments.items():
            check_known(f"`{name}`", value)
        call = cls(bound)
        if not call.tensors:
            types = dict.fromkeys(type(leaf).__name__ for leaf in pytree.tree_leaves(args))
            raise TypeError(
                f"`args` has no torch.Tensor in it (but {', '.join(types) or 'nothing'}); give example tensors."
            )
        for name, tensor in zip(call.names, call.tensors, strict=True):
            _check_tensor(name, tensor)
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
        """The caller's name for each tensor, such as "hx[0]"."""
        names = []
        leaves: Any = pytree.tree_leaves_with_path(self.arguments)
        for path, leaf in leaves:
            if isinstance(leaf, Tensor):
                argument, *rest = path
                names.append(f"{argument.key}{pytree.keystr(tuple(rest))}")
        return names

    @property
    def input_names(self) -> list[str]:
        """The name for each tensor that a file has by default, such as "batch_x"."""
        leaves: Any = pytree.tree_leaves_with_path(self.arguments)
        paths = [path for path, leaf in leaves if isinstance(leaf, Tensor)]
        return leaf_names(paths, "input")

    def axis_name(self, number: int, axis: int) -> str:
        """The name of a dynamic axis that is neither the batch nor the steps, by the tensor of that number: "x_1"."""
        return f"{self.input_names[number]}_{axis}"

    def output_names(self, model: Callable[..., Any]) -> list[str]:
        """Run `model`: -> the name for each output that a file has by default."""
        with torch.no_grad():
            return output_names_of(self.result(model))

    def with_tensors(self, tensors: Sequence[Tensor]) -> "ExampleCall":
        """Return the same call with other tensors."""
        arguments = self._replace_tensors(tensors, replace_other=lambda leaf: leaf)
        return ExampleCall(inspect.BoundArguments(self.bound.signature, arguments))

    def with_argument(self, name: str, value: Any) -> "ExampleCall":
        """Return the same call with another value for one argument."""
        arguments = {**self.arguments, name: value}
        signature = self.bound.signature
        in_order = {
            parameter: arguments[parameter]
            for parameter in signature.parameters
            if parameter in arguments
        }
        return ExampleCall(inspect.BoundArguments(signature, in_order))

    def shapes(self, axes: Sequence[Axes]) -> dict[str, Any]:
        """Arrange one entry for each tensor in the structure of the arguments, as `dynamic_shapes` has it."""
        remaining = iter(axes)

        def entry(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return next(remaining)
            # torch.export wants the parts of such a class as a list.
            parts = class_parts(leaf)
            return None if parts is None else [arranged(part) for part in parts.values()]

        def arranged(value: Any) -> Any:
            return pytree.tree_map(entry, value, is_leaf=lambda leaf: class_parts(leaf) is not None)

        shapes: dict[str, Any] = arranged(self.arguments)
        return shapes

    def axes(self, dynamic_shapes: Any) -> list[Axes]:
        """Return the axes of each tensor that `dynamic_shapes` makes dynamic.

        Raises:
            ExportError: its structure is not that of the arguments, or it names an axis that is not there.
        """
        if isinstance(dynamic_shapes, (tuple, list)):
            dynamic_shapes = dict(zip(self.arguments, dynamic_shapes, strict=False))
        if not isinstance(dynamic_shapes, (Mapping, type(None))):
            raise ExportError(
                f"`dynamic_shapes` (={dynamic_shapes!r}) must be a dict by argument, such as {{'x': {{0: 'B'}}}}."
            )
        return list(_axes("the arguments", self.arguments, dynamic_shapes or None))

    def run(self, model: Callable[..., Any]) -> list[Tensor]:
        """Return the outputs of `model`, flat and without gradients."""
        with torch.no_grad():
            # A parameter among the outputs has gradients even so.
            return [output.detach() for output in self.outputs(model)]

    def outputs(self, model: Callable[..., Any]) -> list[Tensor]:
        """Return the outputs of `model`, flat; a number among them is a tensor of no axes."""
        leaves = pytree.tree_leaves(without_numbers(self.result(model)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def result(self, model: Callable[..., Any]) -> Any:
        """Return what `model` returns, as it returns it."""
        # A model may change its inputs; the next to run gets the same.
        copied = self.with_tensors([tensor.clone() for tensor in self.tensors]).bound
        return model(*copied.args, **copied.kwargs)

    def _replace_tensors(
        self, entries: Sequence[Any], replace_other: Callable[[Any], Any]
    ) -> dict[str, Any]:
        """The arguments with an entry in the place of each tensor."""
        remaining = iter(entries)

        def replace(leaf: Any) -> Any:
            return next(remaining) if isinstance(leaf, Tensor) else replace_other(leaf)

        replaced: dict[str, Any] = pytree.tree_map(replace, self.arguments)
        return replaced


def _check_keywords(model: nn.Module, bound: inspect.BoundArguments) -> None:
    """Refuse arguments that only a `**` of the forward takes: they have no parameter, and so no order."""
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and name in bound.arguments:
            first = next(iter(bound.arguments[name]))
            raise ExportError(
                f"`{first}` reaches {type(model).__name__}.forward through its `**{name}`; give the forward a "
                "parameter of that name."
            )


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.is_nested:
        raise ExportError(f"`{name}` is a nested tensor; pad it, and give the lengths of its rows.")
    shape = list(tensor.shape)
    if tensor.is_meta:
        raise ExportError(f"`{name}` is on the meta device, where tensors have no values.")
    if tensor.layout is not torch.strided:
        raise ExportError(f"`{name}` is {tensor.layout}, and must be dense (torch.strided).")
    if not tensor.numel():
        raise ExportError(
            f"an example tensor of shape {shape} is empty; give every axis a size of 1 or more."
        )


def _axes(label: str, value: Any, shapes: Any) -> Iterator[Axes]:
    """Walk an argument and its part of `dynamic_shapes` side by side; `label` names the argument in errors."""
    parts = class_parts(value)
    if parts is not None:
        value = parts if isinstance(shapes, (Mapping, type(None))) else list(parts.values())
    if isinstance(value, Tensor):
        yield _tensor_axes(label, value, shapes)
    elif isinstance(value, Mapping) and isinstance(shapes, (Mapping, type(None))):
        shapes = shapes or {}
        for name in shapes:
            if name not in value:
                names = ", ".join(map(str, value))
                raise ExportError(f"`dynamic_shapes` names `{name}`; {label} are {names}.")
        for name, item in value.items():
            yield from _axes(f"`{name}`", item, shapes.get(name))
    elif isinstance(value, (tuple, list)) and isinstance(shapes, (tuple, list, type(None))):
        pairs = itertools.zip_longest(value, shapes or ())
        for number, (item, item_shapes) in enumerate(pairs):
            yield from _axes(f"{label}[{number}]", item, item_shapes)
    elif shapes is None:
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                yield {}
    else:
        raise ExportError(
            f"`dynamic_shapes` has {shapes!r} for {label}, which is a {type(value).__name__}."
        )


def _tensor_axes(label: str, tensor: Tensor, shape: Any) -> Axes:
    """`shape`: {axis: name}, or one entry for each axis, or None."""
    if isinstance(shape, (tuple, list)) and len(shape) == tensor.dim():
        shape = dict(enumerate(shape))
    if not isinstance(shape, (Mapping, type(None))):
        raise ExportError(
            f"`dynamic_shapes` has {shape!r} for {label}; give {{axis: name}}, such as {{0: 'B'}}."
        )
    axes: Axes = {}
    for axis, dim in (shape or {}).items():
        if not isinstance(axis, int):
            raise ExportError(
                f"`dynamic_shapes` has axis {axis!r} for {label}; an axis is a whole number, such as 0."
            )
        if not -tensor.dim() <= axis < tensor.dim():
            raise ExportError(
                f"`dynamic_shapes` has axis {axis} for {label}, which has {tensor.dim()} axes."
            )
        # torch.export has three ways to say that an axis is fixed.
        is_fixed = dim is None or isinstance(dim, int) or dim is torch.export.Dim.STATIC
        if not is_fixed:
            axes[axis % tensor.dim()] = dim
    return axes


def on_cpu(model: nn.Module, call: ExampleCall) -> tuple[nn.Module, ExampleCall]:
    """Move both to the CPU, where float32 is float32 (cuDNN may round to TensorFloat-32).

    They are copied only if they are on another device.
    """
    tensors = call.tensors
    devices = {tensor.device.type for tensor in (*model.parameters(), *model.buffers(), *tensors)}
    if devices == {"cpu"}:
        return model, call
    return copy_model(model).cpu(), call.with_tensors([tensor.cpu() for tensor in tensors])
