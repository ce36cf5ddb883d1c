"""Writing ONNX nodes: what all forms build with."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

Result = TypeVar("Result")
Attribute = int | str | Sequence[int] | Sequence[str] | ir.TensorProtocol | ir.Graph


class Builder:
    """Collects the nodes of one stack, or of the body of a loop in it; its scope names what it writes.

        layer = Builder(graph, "rnn0.", {}).scope("l0f.", step=3)
        layer.scope("h").op("Tanh", x)    # rnn0.l0f.h3

    Args:
        graph: takes the constants; its opset is the one to write for.
        scope: what every name begins with.
        results: of `once`; the builders of one graph, in the order of their stacks, share it.
        precision: of the products: "float32" or "float64", as the weights are, or "int8".
        rounds_inputs: in "int8", whether the product of a layer's input is of eight bits, too.
    """

    def __init__(
        self,
        graph: ir.Graph,
        scope: str,
        results: dict[Hashable, Any],
        precision: str | None = None,
        *,
        rounds_inputs: bool = True,
    ) -> None:
        self.nodes: list[ir.Node] = []
        self.root = self
        """The builder of the whole stack, outside every scope and loop."""
        self._graph = graph
        self._scope = scope
        self._step = ""
        self._results = results
        self.precision = precision
        self.rounds_inputs = rounds_inputs

    def scope(self, name: str, step: int | None = None) -> "Builder":
        """Return a builder of the same nodes, whose names go on with `name`, and end in the number of the step."""
        inner = Builder(
            self._graph,
            self._scope + name,
            self._results,
            self.precision,
            rounds_inputs=self.rounds_inputs,
        )
        inner.nodes = self.nodes
        inner.root = self.root
        inner._step = self._step if step is None else str(step)
        return inner

    def body(self) -> "Builder":
        """Return a builder of the body of a loop, which sees everything outside; constants stay there."""
        body = self.scope("")
        body.nodes = []
        return body

    def input(self, dtype: ir.DataType) -> ir.Value:
        """Return an input of a loop's body, called as the scope is."""
        return ir.Value(name=self._name(), type=ir.TensorType(dtype))

    @property
    def opset(self) -> int:
        """The version of the graph's operators."""
        return self._graph.opset_imports[""]

    @property
    def name(self) -> str:
        """What a value of the scope is called."""
        return self._name()

    def once(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """Return what `make` returns for `key`, called (and its nodes written) only once in a graph."""
        if key not in self._results:
            self._results[key] = make()
        result: Result = self._results[key]
        return result

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Add a node with one output, called as the scope is."""
        return self.op_many(op_type, *inputs, outputs=[""], **attributes)[0]

    def op_many(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: Sequence[str],
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs, each of which has its own name within the scope."""
        used_inputs = list(inputs)
        # An optional input at the end is left out; one in the middle stays, as None.
        while used_inputs and used_inputs[-1] is None:
            used_inputs.pop()
        node = ir.node(op_type, used_inputs, attributes=attributes, num_outputs=len(outputs))
        for value, name in zip(node.outputs, outputs, strict=True):
            value.name = self._name(name)
        self.nodes.append(node)
        return node.outputs

    def copy(
        self, node: ir.Node, values: dict[ir.Value, ir.Value], name: Callable[[str], str]
    ) -> None:
        """Add a copy of a node of another graph.

        Args:
            values: value there -> value here, for its inputs; its outputs are added.
            name: name there -> name within the scope, for its outputs.
        """
        inputs = [None if value is None else values[value] for value in node.inputs]
        attributes = list(node.attributes.values())
        copied = ir.Node(
            node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs)
        )
        for value, original in zip(copied.outputs, node.outputs, strict=True):
            value.name = self._name(name(str(original.name)))
            values[original] = value
        self.nodes.append(copied)

    def constant(self, array: np.ndarray) -> ir.Value:
        """Add an initializer."""
        tensor = ir.tensor(array, name=self._name())
        shape = ir.Shape(array.shape)
        dtype = ir.TensorType(tensor.dtype)
        value = ir.Value(name=tensor.name, shape=shape, type=dtype, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def reshape(self, value: ir.Value, shape: Sequence[int | ir.Value]) -> ir.Value:
        return self.op("Reshape", value, self.scope(".shape").shape(shape))

    def shape(self, sizes: Sequence[int | ir.Value]) -> ir.Value:
        """Return a tensor of sizes, some of which may be tensors of one element."""
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) == len(sizes):
            return self.constant(np.array(numbers, np.int64))
        parts = [self._size(size, axis) for axis, size in enumerate(sizes)]
        return self.concat(parts, axis=0)

    def _size(self, size: int | ir.Value, axis: int) -> ir.Value:
        if isinstance(size, int):
            array = np.array([size], np.int64)
            return self.scope(f".{axis}").constant(array)
        return size

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        return self.once(("cast", value, dtype), lambda: self.op("Cast", value, to=dtype))

    def split(self, value: ir.Value, parts: int, axis: int = 0) -> Sequence[ir.Value]:
        """Cut an axis into equal parts."""
        if parts == 1:
            return [value]
        outputs = [str(part) for part in range(parts)]
        return self.op_many("Split", value, outputs=outputs, axis=axis, num_outputs=parts)

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """Join along an axis; constants are joined now."""
        if len(values) == 1:
            return values[0]
        arrays = _constants(values)
        if arrays is not None:
            key = ("concat", axis, *values)
            return self.once(key, lambda: self.constant(np.concatenate(arrays, axis)))
        return self.op("Concat", *values, axis=axis)

    def stack(self, values: Sequence[ir.Value]) -> ir.Value:
        """Join along a new first axis, only once in a graph; constants are joined now."""
        return self.once(("stack", *values), lambda: self._stack(values))

    def _stack(self, values: Sequence[ir.Value]) -> ir.Value:
        arrays = _constants(values)
        if arrays is not None:
            return self.constant(np.stack(arrays))
        axes = self.scope(".axes").constant(np.array([0]))
        parts = []
        for number, value in enumerate(values):
            parts.append(self.scope(f".{number}").op("Unsqueeze", value, axes))
        return self.concat(parts, axis=0)

    def transposed(self, value: ir.Value) -> ir.Value:
        """Return [N, M] as [M, N], turned only once in a graph; a constant is turned now."""
        return self.once(("transposed", value), lambda: self._transposed(value))

    def named_after(self, value: ir.Value) -> "Builder":
        """Return a builder whose scope is the name of `value`, which may have this one's scope in front."""
        return self.scope(str(value.name).removeprefix(self._scope))

    def _transposed(self, value: ir.Value) -> ir.Value:
        # Outside every loop, since the next one may read it, too.
        build = self.root.named_after(value).scope(".T")
        if value.const_value is not None:
            return build.constant(np.ascontiguousarray(value.const_value.numpy().T))
        return build.op("Transpose", value, perm=[1, 0])

    def add(self, values: Sequence[ir.Value]) -> ir.Value | None:
        """Return the sum of one or more values, computed now if all are constants; None for none."""
        if not values:
            return None
        if len(values) == 1:
            return values[0]
        return self.once(("add", *values), lambda: self._add(values))

    def _add(self, values: Sequence[ir.Value]) -> ir.Value:
        arrays = _constants(values)
        if arrays is not None:
            return self.constant(np.add.reduce(arrays))
        total = values[0]
        for value in values[1:]:
            total = self.op("Add", total, value)
        return total

    def blocks(self, value: ir.Value, chosen: Sequence[int], count: int) -> ir.Value:
        """Cut the first axis into `count` equal blocks and join the `chosen` ones, in that order.

        A constant is cut now.
        """
        if list(chosen) == list(range(count)):
            return value
        return self.once(("blocks", value, *chosen), lambda: self._blocks(value, chosen, count))

    def _blocks(self, value: ir.Value, chosen: Sequence[int], count: int) -> ir.Value:
        if value.const_value is not None:
            arrays = np.split(value.const_value.numpy(), count)
            return self.constant(np.concatenate([arrays[block] for block in chosen]))
        parts = self.scope(".block").split(value, count)
        joined = self.concat([parts[block] for block in chosen], axis=0)
        if value.shape is not None and isinstance(value.shape[0], int):
            rows = value.shape[0] // count * len(chosen)
            joined.shape = ir.Shape([rows, *value.shape[1:]])
        return joined

    def _name(self, name: str = "") -> str:
        return f"{self._scope}{name}{self._step}"


def replace_node(
    graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]
) -> None:
    """Put `nodes` in the place of `node`, and `outputs` in the place of its outputs."""
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, outputs, strict=True):
        new.shape = old.shape
        new.type = old.type
        # An output of the graph keeps its name, whatever computes it.
        if old.is_graph_output():
            name = old.name
            old.name = None
            new.name = name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _constants(values: Sequence[ir.Value]) -> list[np.ndarray] | None:
    """The arrays of constants; None if one of `values` is not a constant."""
    arrays = []
    for value in values:
        if value.const_value is None:
            return None
        arrays.append(value.const_value.numpy())
    return arrays
