"""Writing ONNX nodes: what all forms build with."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


class Builder:
    """Collects nodes for one place in a graph, with names that start with `prefix`."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self._graph = graph
        self._prefix = prefix

    def op(self, op_type: str, *inputs: ir.Value | None, name: str, **attributes: int | float | str) -> ir.Value:
        """Add a node with one output, called `name`."""
        return self.op_many(op_type, *inputs, names=[name], **attributes)[0]

    def op_many(
        self, op_type: str, *inputs: ir.Value | None, names: Sequence[str], **attributes: int | float | str
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

    def constant(self, array: np.ndarray, *, name: str) -> ir.Value:
        """An initializer."""
        tensor = ir.tensor(array, name=self._prefix + name)
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def reshape(self, value: ir.Value, shape: Sequence[int], *, name: str) -> ir.Value:
        return self.op("Reshape", value, self.constant(np.array(shape, np.int64), name=f"{name}.shape"), name=name)

    def split(self, value: ir.Value, parts: int, *, name: str) -> Sequence[ir.Value]:
        """Cut the first axis into equal parts."""
        if parts == 1:
            return [value]
        names = [f"{name}{part}" for part in range(parts)]
        return self.op_many("Split", value, names=names, axis=0, num_outputs=parts)

    def concat(self, values: Sequence[ir.Value], *, axis: int, name: str) -> ir.Value:
        if len(values) == 1:
            return values[0]
        return self.op("Concat", *values, name=name, axis=axis)

    def add(self, values: Sequence[ir.Value], *, name: str) -> ir.Value | None:
        """The sum of one or more values, computed now where all are constants; None for none."""
        if not values:
            return None
        tensors = [value.const_value for value in values]
        if all(tensor is not None for tensor in tensors):
            return self.constant(sum(tensor.numpy() for tensor in tensors), name=name)  # type: ignore[union-attr, misc, arg-type]
        total = values[0]
        for value in values[1:]:
            total = self.op("Add", total, value, name=name)
        return total
