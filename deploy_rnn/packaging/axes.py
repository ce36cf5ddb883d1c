"""An example call some of whose axes are dynamic: their names, their ranges, and the same call at other sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.trials import draw
from deploy_rnn.errors import ExportError
from deploy_rnn.nn.recurrent import is_recurrent

NO_LIMIT = 2**63 - 1


@dataclass(frozen=True)
class Axis:
    """A dynamic axis, which several tensors may share.

    Attributes:
        name: such as "B".
        least, most: its range; `least` is 0 if nobody said.
    """

    name: str
    least: int = 0
    most: int = NO_LIMIT


Axes = dict[int, Axis]
"""Those of one tensor, by number; the others are fixed."""


@dataclass(frozen=True)
class DynamicCall:
    """A call of a model, and what is dynamic in each of `call.tensors`."""

    model: nn.Module
    call: ExampleCall
    axes: list[Axes]

    @classmethod
    def of(cls, model: nn.Module, call: ExampleCall, dynamic_shapes: Any) -> "DynamicCall":
        """`dynamic_shapes`: see `package`; None is T and B of a bare layer, and nothing of other models.

        Raises:
            ExportError: an axis that has no name or is not there, or one name for two sizes.
        """
        if dynamic_shapes is None and is_recurrent(model):
            dynamic_shapes = _of_layer(model, call)
        axes = [{number: _axis(dim) for number, dim in asked.items()} for asked in call.axes(dynamic_shapes)]
        _check_names(call, axes)
        return cls(model, call, axes)

    @property
    def sizes(self) -> dict[Axis, int]:
        """Every dynamic axis, once, and its size in the example."""
        pairs = zip(self.call.tensors, self.axes, strict=True)
        return {axis: tensor.size(number) for tensor, named in pairs for number, axis in named.items()}

    @property
    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """What each tensor is called -> a number for each fixed axis, a name for each dynamic one."""
        return {
            name: tuple(named[number].name if number in named else size for number, size in enumerate(tensor.shape))
            for name, tensor, named in zip(self.call.names, self.call.tensors, self.axes, strict=True)
        }

    def renamed(self, axes: Mapping[Axis, Axis]) -> "DynamicCall":
        """With other ranges."""
        return replace(self, axes=[{number: axes[axis] for number, axis in named.items()} for named in self.axes])

    def drawn(self, sizes: Mapping[Axis, int], random: torch.Generator) -> ExampleCall:
        """The same call with random tensors of other sizes."""
        tensors = []
        for tensor, named in zip(self.call.tensors, self.axes, strict=True):
            shape = [sizes[named[number]] if number in named else size for number, size in enumerate(tensor.shape)]
            tensors.append(draw(tensor, shape, random))
        drawn = self.call.with_tensors(tensors)
        lengths = drawn.arguments.get("lengths")
        if is_recurrent(self.model) and isinstance(lengths, Tensor):
            lengths.clamp_(max=drawn.arguments["input"].size(1 if self.model.batch_first else 0))
        return drawn


def _of_layer(layer: nn.Module, call: ExampleCall) -> dict[str, Any]:
    """T and B wherever a layer's arguments have them."""
    if not isinstance(call.arguments["input"], Tensor):
        raise ExportError("a file takes tensors: give a padded `input` and its `lengths` in place of a PackedSequence.")
    if call.tensors[0].dim() == 2:
        return {"input": {0: "T"}}
    asked = {name: pytree.tree_map(lambda _: {1: "B"}, value) for name, value in call.arguments.items()}
    asked["input"] = {0: "B", 1: "T"} if layer.batch_first else {0: "T", 1: "B"}
    return {name: {0: "B"} if name == "lengths" else each for name, each in asked.items()}


def _axis(dim: Any) -> Axis:
    name = dim if isinstance(dim, str) else getattr(dim, "__name__", "")
    if not name.isidentifier():
        raise ExportError(f"`dynamic_shapes` has {dim!r} for an axis; give a name, such as 'B', or Dim('B', min=2).")
    return Axis(name) if isinstance(dim, str) else Axis(name, int(dim.min), int(min(dim.max, NO_LIMIT)))


def _check_names(call: ExampleCall, axes: Sequence[Axes]) -> None:
    known: dict[str, tuple[int, Axis]] = {}
    for tensor, named in zip(call.tensors, axes, strict=True):
        for number, axis in named.items():
            size, first = known.setdefault(axis.name, (tensor.size(number), axis))
            if size != tensor.size(number) or first != axis:
                raise ExportError(
                    f"`dynamic_shapes` has `{axis.name}` for an axis of size {size} and for one of size "
                    f"{tensor.size(number)}; one name is one size, with one range."
                )
