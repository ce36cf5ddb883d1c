"""The products of steps that users have written, in eight bits.

They are found among the nodes that torch.onnx has made of a step (see `WeightProduct`).
"""

import onnx_ir as ir

from ..precision.names import INT8
from ..precision.state_values import state_values
from ..precision.weight_products import GraphConstants, WeightProduct
from ..precision.weights import CellKeys
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


def round_products(graph: ir.Graph, prefix: str, cells: CellKeys, rounds_inputs: bool) -> int:
    """Write the products in the steps of loops, and those of cells anywhere, in eight bits, in place.

    A weight that a step multiplies by is of eight bits in the rest of the graph, too: a weight is one or the other.

    Args:
        cells: the weights of the cells of torch.nn.
        rounds_inputs: whether those are meant, too, that no state goes into; see `Int8Scope`.

    Returns:
        How many products have been written.
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
    count = 0
    builders: dict[int, Builder] = {}
    for node in list(graph.all_nodes()):
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
