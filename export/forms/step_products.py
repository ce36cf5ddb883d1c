"""The products of steps that users have written, in eight bits.

They are found among the nodes that torch.onnx has made of a step (see `WeightProduct`).
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any

import onnx_ir as ir

from ..precision.names import INT8
from ..precision.state_values import state_values
from ..precision.weight_products import GraphConstants, WeightProduct
from ..precision.weights import CellKeys, scaled_key
from ..stack import loop_nodes
from .builder import Builder, replace_node
from .int8_product import int8_product, largest_of_rows


def write_product(
    build: Builder, product: WeightProduct, rows: ir.Value, bias: ir.Value | None
) -> ir.Value:
    """Write a product in eight bits, of other rows and with another bias; a weight is stored once."""

    def make() -> ir.Value:
        tensor = ir.tensor(product.weight, name=product.name)
        return ir.Value(name=product.name, const_value=tensor)

    weight = build.once(("step weight", product.key), make)
    return int8_product(build, rows, weight, bias, largest_of_rows(build, rows))


def step_keys(graph: ir.Graph, cells: CellKeys, *, rounds_inputs: bool) -> set[bytes]:
    """The `weight_key` of each weight that cells, and the steps of loops, multiply by in eight bits.

    Args:
        cells: the weights of the cells of torch.nn.
        rounds_inputs: whether those are meant, too, that no state goes into; see `Int8Scope`.
    """
    constants = GraphConstants(graph.opset_imports[""])
    keys = set(cells.of_states)
    if rounds_inputs:
        keys |= cells.of_inputs
    carried = set() if rounds_inputs else state_values(graph)
    for loop in loop_nodes(graph):
        for node in loop.attributes["body"].as_graph().all_nodes():
            product = WeightProduct.of(node, constants)
            if product is None:
                continue
            # The input of a second cell is no state, although it follows from one.
            is_of_state = product.rows in carried and product.key not in cells.of_inputs
            if rounds_inputs or is_of_state:
                keys.add(product.key)
    return keys


def written_keys(results: Mapping[Hashable, Any]) -> set[bytes]:
    """The same of the weights that `int8_product` has written with builders of these results."""
    keys = set()
    for key, result in results.items():
        if isinstance(key, tuple) and key[0] == "columns":
            levels, scales = (value.const_value.numpy() for value in result)
            keys.add(scaled_key(levels, scales))
    return keys


def round_products(
    graph: ir.Graph, nodes: Iterable[ir.Node], keys: Collection[bytes], prefix: str
) -> int:
    """Write the products with certain weights in eight bits, in place.

    A weight is of eight bits in all products with it, or in none.

    Args:
        nodes: of the graph, and of the bodies in it.
        keys: the `weight_key` of each weight.
        prefix: of names.

    Returns:
        How many products have been written.
    """
    constants = GraphConstants(graph.opset_imports[""])
    count = 0
    builders: dict[int, Builder] = {}
    for node in list(nodes):
        product = WeightProduct.of(node, constants)
        if product is None or product.key not in keys:
            continue
        around = node.graph
        assert isinstance(around, ir.Graph)
        # Each body has a builder: what it writes once, another does not see.
        name = f"{prefix}{len(builders)}."
        build = builders.setdefault(id(around), Builder(graph, name, {}, INT8))
        build.nodes.clear()
        scope = build.scope(str(node.outputs[0].name))
        output = write_product(scope, product, product.rows, product.bias)
        replace_node(around, node, build.nodes, [output])
        count += 1
    return count
