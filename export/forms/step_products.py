"""The products of steps that users have written: which of them can be of eight bits, and how they are written.

They are found among the nodes that torch.onnx has made of a step: rows times a constant.

1. `MatMul` by a constant (K, M), or (1, K, M) of rows with three axes or more.
2. `Gemm` of rows and a constant, as it stands or transposed, with alpha and beta of 1.

What multiplies otherwise stays as it is.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ..precision.names import INT8
from ..precision.rounding import rounded_columns
from ..precision.weights import weight_key
from ..stack import loop_nodes
from .builder import Builder, replace_node
from .int8_product import int8_product, largest_of_rows

Constants = Callable[[ir.Value], np.ndarray | None]
"""A value -> its numbers if they are constant."""


@dataclass(frozen=True)
class StepProduct:
    """rows (..., K) @ weight.T + bias

    Attributes:
        rows: what is multiplied.
        weight: (M, K) in float32.
        name: of the weight.
        bias: what is added, or None.
    """

    rows: ir.Value
    weight: np.ndarray
    name: str
    bias: ir.Value | None

    @classmethod
    def of(cls, node: ir.Node, constants: Constants) -> "StepProduct | None":
        """The product that a node is; None if it is none that can be of eight bits."""
        if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
            return None
        rows, right, bias = (*node.inputs, None)[:3]
        if rows is None or right is None:
            return None
        array = constants(right)
        if array is None or array.dtype != np.float32 or not np.isfinite(array).all():
            return None
        is_matmul = node.op_type == "MatMul"
        weight = _right_matrix(array, rows) if is_matmul else _gemm_weight(node, array)
        if weight is None:
            return None
        return cls(rows, weight, str(right.name), bias)

    @cached_property
    def key(self) -> bytes:
        """What tells the rounded weight from others."""
        return weight_key(*rounded_columns(self.weight))

    def write(self, build: Builder, rows: ir.Value, bias: ir.Value | None) -> ir.Value:
        """The same with other rows and another bias, in eight bits; a weight is stored once."""
        weight = build.once(("step weight", self.key), self._value)
        return int8_product(build, rows, weight, bias, largest_of_rows(build, rows))

    def _value(self) -> ir.Value:
        tensor = ir.tensor(self.weight, name=self.name)
        return ir.Value(name=self.name, const_value=tensor)


def _right_matrix(array: np.ndarray, rows: ir.Value) -> np.ndarray | None:
    """Case 1: a constant as (M, K); None if the product would have another shape with that."""
    rank = None if rows.shape is None else len(rows.shape)
    if rank is None or rank < 2 or array.ndim not in (2, 3):
        return None
    if array.ndim == 3 and (array.shape[0] != 1 or rank < 3):
        return None
    return np.ascontiguousarray(array.reshape(array.shape[-2:]).T)


def _gemm_weight(node: ir.Node, array: np.ndarray) -> np.ndarray | None:
    """Case 2."""
    attributes = node.attributes
    if any(name in attributes and attributes[name].as_float() != 1 for name in ("alpha", "beta")):
        return None
    if "transA" in attributes and attributes["transA"].as_int():
        return None
    is_transposed = "transB" in attributes and attributes["transB"].as_int()
    return np.ascontiguousarray(array if is_transposed else array.T)


def initializer(value: ir.Value) -> np.ndarray | None:
    """The numbers of an initializer."""
    return None if value.const_value is None else value.const_value.numpy()


def computed(
    nodes: Sequence[ir.Node], numbers: Mapping[ir.Value, np.ndarray | None], opset: int
) -> dict[ir.Value, np.ndarray]:
    """What nodes compute of nothing but these numbers, in order."""
    if not nodes:
        return {}
    used = {value for node in nodes for value in node.inputs if value is not None}
    constants = []
    for value, array in numbers.items():
        if value in used and array is not None:
            constants.append(numpy_helper.from_array(array, str(value.name)))
    outputs = [output for node in nodes for output in node.outputs]
    graph = helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "weights",
        [],
        [helper.make_empty_tensor_value_info(str(output.name)) for output in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return dict(zip(outputs, ReferenceEvaluator(model).run(None, {}), strict=True))


def round_products(graph: ir.Graph, prefix: str, cells: Collection[bytes]) -> int:
    """Write the products in the steps of loops, and those of cells anywhere, in eight bits, in place.

    A weight that a step multiplies by is of eight bits in the rest of the graph, too: a weight is one or the other.

    Args:
        cells: the `weight_key` of each weight of a cell.

    Returns:
        How many products have been written.
    """
    keys = set(cells)
    for loop in loop_nodes(graph):
        for node in loop.attributes["body"].as_graph().all_nodes():
            product = StepProduct.of(node, initializer)
            if product is not None:
                keys.add(product.key)
    count = 0
    builders: dict[int, Builder] = {}
    for node in list(graph.all_nodes()):
        product = StepProduct.of(node, initializer)
        if product is None or product.key not in keys:
            continue
        around = node.graph
        assert isinstance(around, ir.Graph)
        # Each body has a builder: what it writes once, another does not see.
        name = f"{prefix}{len(builders)}."
        build = builders.setdefault(id(around), Builder(graph, name, {}, INT8))
        build.nodes.clear()
        scope = build.scope(str(node.outputs[0].name))
        output = product.write(scope, product.rows, product.bias)
        replace_node(around, node, build.nodes, [output])
        count += 1
    return count
