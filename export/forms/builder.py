"""Writing ONNX nodes: what all forms build with."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

Made = TypeVar("Made")
Attribute = int | str | Sequence[int] | Sequence[str] | ir.TensorProtocol | ir.Graph


class Builder:
    """Collects nodes for one place in a graph, with names that start with `prefix`.

    The builders of one graph, in the order of their places, share `made`.
    """

    def __init__(self, graph: ir.Graph, prefix: str, made: dict[Hashable, Any]) -> None:
        self.nodes: list[ir.Node] = []
        self.outside = self
        """Where nodes go that the steps of a loop share: this builder, or for a loop's body the one around it."""
        self._graph = graph
        self._prefix = prefix
        self._made = made

    def body(self, prefix: str) -> "Builder":
        """For the nodes of a loop's body, which see all that is outside; constants stay there."""
        body = Builder(self._graph, self._prefix + prefix, self._made)
        body.outside = self
        return body

    def input(self, name: str, dtype: ir.DataType) -> ir.Value:
        """An input of a loop's body."""
        return ir.Value(name=self._prefix + name, type=ir.TensorType(dtype))

    @property
    def opset(self) -> int:
        """The version of the graph's operators."""
        return self._graph.opset_imports[""]

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns for `key`, made (and its nodes written) only once in a graph."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def op(self, op_type: str, *inputs: ir.Value | None, name: str, **attributes: Attribute) -> ir.Value:
        """Add a node with one output, called `name`."""
        return self.op_many(op_type, *inputs, names=[name], **attributes)[0]

    def op_many(
        self, op_type: str, *inputs: ir.Value | None, names: Sequence[str], **attributes: Attribute
    ) -> Sequence[ir.Value]:
        """Add a node with one output for each of `names`."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        node = ir.node(op_type, given, attributes=attributes, num_outputs=len(names))
        for value, name in zip(node.outputs, names, strict=True):
            value.name = self._prefix + name
        self.nodes.append(node)
        return node.outputs

    def copy(self, node: ir.Node, known: dict[ir.Value, ir.Value], *, name: Callable[[str], str]) -> None:
        """Add a copy of a node of another graph.

        Args:
            known: value there -> value here, for its inputs; its outputs are added.
            name: name there -> name here, of its outputs.
        """
        inputs = [None if value is None else known[value] for value in node.inputs]
        copied = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs)
        )
        for value, original in zip(copied.outputs, node.outputs, strict=True):
            value.name = self._prefix + name(str(original.name))
            known[original] = value
        self.nodes.append(copied)

    def constant(self, array: np.ndarray, *, name: str) -> ir.Value:
        """An initializer."""
        tensor = ir.tensor(array, name=self._prefix + name)
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def reshape(self, value: ir.Value, shape: Sequence[int | ir.Value], *, name: str) -> ir.Value:
        return self.op("Reshape", value, self.shape(shape, name=f"{name}.shape"), name=name)

    def shape(self, sizes: Sequence[int | ir.Value], *, name: str) -> ir.Value:
        """A tensor of sizes, some of which may be tensors of one element."""
        known = [size for size in sizes if isinstance(size, int)]
        if len(known) == len(sizes):
            return self.constant(np.array(known, np.int64), name=name)
        parts = [
            self.constant(np.array([size], np.int64), name=f"{name}.{axis}") if isinstance(size, int) else size
            for axis, size in enumerate(sizes)
        ]
        return self.concat(parts, axis=0, name=name)

    def cast(self, value: ir.Value, dtype: ir.DataType, *, name: str) -> ir.Value:
        if value.dtype == dtype:
            return value
        return self.once(("cast", value, dtype), lambda: self.op("Cast", value, name=name, to=dtype))

    def split(self, value: ir.Value, parts: int, *, name: str, axis: int = 0) -> Sequence[ir.Value]:
        """Cut an axis into equal parts."""
        if parts == 1:
            return [value]
        names = [f"{name}{part}" for part in range(parts)]
        return self.op_many("Split", value, names=names, axis=axis, num_outputs=parts)

    def concat(self, values: Sequence[ir.Value], *, axis: int, name: str) -> ir.Value:
        """Joined along an axis; constants now."""
        if len(values) == 1:
            return values[0]
        arrays = _constants(values)
        if arrays is not None:
            return self.constant(np.concatenate(arrays, axis), name=name)
        return self.op("Concat", *values, name=name, axis=axis)

    def stack(self, values: Sequence[ir.Value], *, name: str) -> ir.Value:
        """Joined along a new first axis; constants now."""
        arrays = _constants(values)
        if arrays is not None:
            return self.constant(np.stack(arrays), name=name)
        axes = self.constant(np.array([0]), name=f"{name}.axes")
        parts = [self.op("Unsqueeze", value, axes, name=f"{name}.{part}") for part, value in enumerate(values)]
        return self.concat(parts, axis=0, name=name)

    def add(self, values: Sequence[ir.Value], *, name: str) -> ir.Value | None:
        """The sum of one or more values, computed now where all are constants; None for none."""
        if len(values) < 2:
            return values[0] if values else None
        return self.once(("add", *values), lambda: self._add(values, name))

    def _add(self, values: Sequence[ir.Value], name: str) -> ir.Value:
        arrays = _constants(values)
        if arrays is not None:
            return self.constant(np.add.reduce(arrays), name=name)
        total = values[0]
        for value in values[1:]:
            total = self.op("Add", total, value, name=name)
        return total

    def blocks(self, value: ir.Value, chosen: Sequence[int], of: int, *, name: str) -> ir.Value:
        """Of the first axis, cut into `of` equal blocks, those `chosen`, in that order; cut now from a constant."""
        if list(chosen) == list(range(of)):
            return value
        return self.once(("blocks", value, *chosen), lambda: self._blocks(value, chosen, of, name))

    def _blocks(self, value: ir.Value, chosen: Sequence[int], of: int, name: str) -> ir.Value:
        if value.const_value is not None:
            cut = np.split(value.const_value.numpy(), of)
            return self.constant(np.concatenate([cut[block] for block in chosen]), name=name)
        parts = self.split(value, of, name=f"{name}.block")
        joined = self.concat([parts[block] for block in chosen], axis=0, name=name)
        if value.shape is not None and isinstance(value.shape[0], int):
            joined.shape = ir.Shape([value.shape[0] // of * len(chosen), *value.shape[1:]])
        return joined


def _constants(values: Sequence[ir.Value]) -> list[np.ndarray] | None:
    """None if one is not a constant."""
    tensors = [value.const_value for value in values]
    return [tensor.numpy() for tensor in tensors if tensor is not None] if None not in tensors else None
