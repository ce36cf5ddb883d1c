"""An example call some of whose axes are dynamic: their names, their ranges, and the same call at other sizes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.checking.draws import Draws, ExampleInput
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import ExportError
from deploy_rnn.nn.recurrent import is_plain_layer

NO_LIMIT = 2**63 - 1


@dataclass(frozen=True)
class Axis:
    """A dynamic axis, which several tensors may share.

    Attributes:
        name: such as "B".
        least, most: its range; without one, from 0 to `NO_LIMIT`.
    """

    name: str
    least: int = 0
    most: int = NO_LIMIT

    @property
    def has_range(self) -> bool:
        """Whether a size of 2 or more is left out."""
        return self.least > 2 or self.most < NO_LIMIT


Axes = dict[int, Axis]
"""The dynamic axes of one tensor, by number; its other axes are fixed."""


@dataclass(frozen=True)
class DynamicCall:
    """A call of a model, and the dynamic axes of each of `call.tensors`."""

    model: nn.Module
    call: ExampleCall
    axes: list[Axes]

    @classmethod
    def of(cls, model: nn.Module, call: ExampleCall, dynamic_shapes: Any) -> "DynamicCall":
        """Read `dynamic_shapes`, as `package` takes it; None is T and B of a bare layer, and no axis of other models.

        Raises:
            ExportError: an axis without a name, an axis that does not exist, or one name for two sizes.
        """
        if dynamic_shapes is None and is_plain_layer(model):
            dynamic_shapes = _layer_shapes(model, call)
        axes = []
        for requested_dims in call.axes(dynamic_shapes):
            axes.append({number: _axis(dim) for number, dim in requested_dims.items()})
        _check_names(call, axes)
        return cls(model, call, axes)

    @property
    def sizes(self) -> dict[Axis, int]:
        """Every dynamic axis, once, and its size in the example."""
        sizes = {}
        for tensor, axes in self._tensors_with_axes():
            for number, axis in axes.items():
                sizes[axis] = tensor.size(number)
        return sizes

    @property
    def names(self) -> list[str]:
        """The names of the dynamic axes."""
        return list(dict.fromkeys(axis.name for axes in self.axes for axis in axes.values()))

    @property
    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """The name of each tensor -> a number for each fixed axis, a name for each dynamic one."""
        shapes = {}
        for name, (tensor, axes) in zip(self.call.names, self._tensors_with_axes(), strict=True):
            shape: list[int | str] = list(tensor.shape)
            for number, axis in axes.items():
                shape[number] = axis.name
            shapes[name] = tuple(shape)
        return shapes

    def without(self, name: str) -> "DynamicCall":
        """The same call, the axes of that name fixed."""
        new_axes = []
        for axes in self.axes:
            new_axes.append({number: axis for number, axis in axes.items() if axis.name != name})
        return replace(self, axes=new_axes)

    def with_axes(self, axes: Sequence[Axes]) -> "DynamicCall":
        """The same call, with other axes."""
        return replace(self, axes=list(axes))

    def takes(self, sizes: Mapping[Axis, int]) -> bool:
        """Whether sizes, of axes that may have another range, are within the ranges of the axes of the same names."""
        sizes_by_name = {axis.name: size for axis, size in sizes.items()}
        return all(axis.least <= sizes_by_name[axis.name] <= axis.most for axis in self.sizes)

    def with_ranges(self, ranges: Mapping[Axis, Axis]) -> "DynamicCall":
        """The same call, each axis replaced by one with another range."""
        new_axes = []
        for axes in self.axes:
            new_axes.append({number: ranges[axis] for number, axis in axes.items()})
        return replace(self, axes=new_axes)

    def calls(self, sizes: Mapping[Axis, int], random: torch.Generator) -> Iterator[ExampleCall]:
        """Yield calls with random tensors of other sizes, of which the model may take only a later one."""
        inputs = []
        for (name, shape), tensor in zip(self.shapes.items(), self.call.tensors, strict=True):
            inputs.append(ExampleInput(name, shape, tensor, self._length_limit(name)))
        draws = Draws(self.call, inputs)
        names = {axis.name: size for axis, size in sizes.items()}
        for _, call in draws.calls(names, random):
            yield call

    def _length_limit(self, name: str) -> int | str | None:
        """The steps of a bare layer, by name or number, for its lengths; None for any other tensor."""
        if name != "lengths" or not is_plain_layer(self.model):
            return None
        time_axis = 1 if self.model.batch_first else 0
        return self.shapes["input"][time_axis]

    def _tensors_with_axes(self) -> Iterator[tuple[Tensor, Axes]]:
        return zip(self.call.tensors, self.axes, strict=True)


def _layer_shapes(layer: nn.Module, call: ExampleCall) -> dict[str, Any]:
    """The `dynamic_shapes` of a bare layer: T and B wherever its arguments have them."""
    if not isinstance(call.arguments["input"], Tensor):
        raise ExportError(
            "a file takes tensors: give a padded `input` and its `lengths` in place of a PackedSequence."
        )
    if call.tensors[0].dim() == 2:
        return {"input": {0: "T"}}
    shapes = {}
    for name, value in call.arguments.items():
        if name == "input":
            shapes[name] = {0: "B", 1: "T"} if layer.batch_first else {0: "T", 1: "B"}
        elif name == "lengths":
            shapes[name] = {0: "B"}
        else:
            # One state, or a tuple of them.
            shapes[name] = pytree.tree_map(lambda _: {1: "B"}, value)
    return shapes


def _axis(dim: Any) -> Axis:
    """A string or a `torch.export.Dim` as an `Axis`."""
    name = dim if isinstance(dim, str) else getattr(dim, "__name__", "")
    if not name.isidentifier():
        raise ExportError(
            f"`dynamic_shapes` has {dim!r} for an axis; give a name, such as 'B', or Dim('B', min=2)."
        )
    if isinstance(dim, str):
        return Axis(name)
    return Axis(name, int(dim.min), int(min(dim.max, NO_LIMIT)))


def _check_names(call: ExampleCall, axes: Sequence[Axes]) -> None:
    """Check that axes of one name have one size and one range."""
    first_uses: dict[str, tuple[int, Axis]] = {}
    for tensor, tensor_axes in zip(call.tensors, axes, strict=True):
        for number, axis in tensor_axes.items():
            size = tensor.size(number)
            first_size, first_axis = first_uses.setdefault(axis.name, (size, axis))
            if (first_size, first_axis) != (size, axis):
                raise ExportError(
                    f"`dynamic_shapes` has `{axis.name}` for an axis of size {first_size} and for one of size {size}; "
                    "one name is one size, with one range."
                )
