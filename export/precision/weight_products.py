"""Products with weights among the nodes of a graph: which of them can be of eight bits.

1. `MatMul` by a constant (K, M), or (1, K, M) of rows with three axes or more.
2. `Gemm` of rows and a constant, as it stands or transposed, with alpha and beta of 1.

What multiplies otherwise stays as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .rounding import rounded_columns
from .weights import weight_key

Constants = Callable[[ir.Value], np.ndarray | None]
"""A value -> its numbers if they are constant."""


@dataclass(frozen=True)
class WeightProduct:
    """rows (..., K) @ weight.T + bias, a node of a graph in float32.

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
    def of(cls, node: ir.Node, constants: Constants) -> "WeightProduct | None":
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


class GraphConstants:
    """The numbers of initializers, and of what a graph makes of them by `MOVES` alone.

    torch.onnx computes such parts of small weights itself, and leaves those of large ones to the graph.

    Args:
        opset: of the graph.
    """

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._known: dict[ir.Value, np.ndarray | None] = {}

    def __call__(self, value: ir.Value) -> np.ndarray | None:
        if value not in self._known:
            numbers = initializer(value)
            self._known[value] = self._moved(value) if numbers is None else numbers
        return self._known[value]

    def _moved(self, value: ir.Value) -> np.ndarray | None:
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in MOVES:
            return None
        numbers = {source: self(source) for source in node.inputs if source is not None}
        if any(array is None for array in numbers.values()):
            return None
        return computed([node], numbers, self._opset)[value]


MOVES = frozenset(
    {
        "Constant", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that compute no numbers."""


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
