"""`Signature`: what a model takes and gives, in the graph's layout and in that of its clients."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from deploy_rnn.bundle import Manifest, Tensor
from deploy_rnn.tensor_spec import TensorSpec


@dataclass(frozen=True)
class Signature:
    """Tensors as the graphs have them, and what is known of their axes.

    Outside, every tensor with an axis of rows is batch-first: rows, then steps, then the others in the graph's order. A
    tensor without one stays as it is.

    Attributes:
        inputs, outputs: of every graph.
        lengths: inputs that are the lengths of the rows -> the axis that limits them, or its size.
        states: inputs that carry a state from chunk to chunk -> the outputs that give it.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    lengths: Mapping[str, int | str]
    states: Mapping[str, str]

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Self:
        return cls(manifest.inputs, manifest.outputs, manifest.lengths, manifest.states)

    @classmethod
    def of_specs(cls, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Self:
        """A file of which nothing is known but its shapes."""
        first, last = (tuple(Tensor(each.name, each.dtype, each.shape) for each in ends) for ends in (inputs, outputs))
        return cls(first, last, {}, {})

    @cached_property
    def outer_inputs(self) -> tuple[Tensor, ...]:
        """The inputs as a client gives them."""
        return tuple(map(outer, self.inputs))

    @cached_property
    def outer_outputs(self) -> tuple[Tensor, ...]:
        return tuple(map(outer, self.outputs))

    @cached_property
    def optional(self) -> frozenset[str]:
        """Inputs that a client may leave out: lengths (then every step counts) and states (then zeros)."""
        return frozenset(self.lengths) | frozenset(self.states)

    @cached_property
    def rows_axis(self) -> str | None:
        """What the rows are called if every tensor has them; None if requests cannot share a run."""
        names = {each.shape[each.batch] if each.batch is not None else None for each in (*self.inputs, *self.outputs)}
        name = names.pop() if len(names) == 1 else None
        return name if isinstance(name, str) else None

    @cached_property
    def steps_axes(self) -> frozenset[str]:
        """What the axes of steps are called."""
        names = (each.shape[each.time] for each in (*self.inputs, *self.outputs) if each.time is not None)
        return frozenset(name for name in names if isinstance(name, str))

    @cached_property
    def has_lengths(self) -> bool:
        """Whether rows may be padded, by all that the names say."""
        return self.rows_axis is not None and len(self.steps_axes) == 1 and self.steps_axes <= {*self.lengths.values()}

    @cached_property
    def in_time(self) -> frozenset[str]:
        """Outputs with a value for every step."""
        return frozenset(each.name for each in self.outputs if each.time is not None)


def order(tensor: Tensor) -> tuple[int, ...]:
    """The axes of a graph's tensor as they stand outside."""
    axes = range(len(tensor.shape))
    if tensor.batch is None:
        return tuple(axes)
    first = [tensor.batch] if tensor.time is None else [tensor.batch, tensor.time]
    return (*first, *(axis for axis in axes if axis not in first))


def outer(tensor: Tensor) -> Tensor:
    """A graph's tensor as it looks outside."""
    axes = order(tensor)
    return replace(
        tensor,
        shape=tuple(tensor.shape[axis] for axis in axes),
        batch=None if tensor.batch is None else axes.index(tensor.batch),
        time=None if tensor.time is None else axes.index(tensor.time),
    )
