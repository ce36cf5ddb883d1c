"""A graph with what runtimes of fewer operators take. It was captured with the batch as a number, so it has no shapes.

1. A `Gemm` that adds what the graph computes is two nodes: ncnn's converter makes a linear layer of every Gemm, and
   that has a constant bias only.
2. ONNX's RNN, GRU and LSTM name all of their outputs: MNN's converter writes beyond its memory for an LSTM that leaves
   out the last one, and takes the second for the first where that is left out.
"""

import onnx_ir as ir

from ..recurrent_nodes import RECURRENT
from .builder import replace_node


def make_portable(model: ir.Model) -> None:
    """Apply both, in place."""
    split_products(model)
    name_outputs(model)


def name_outputs(model: ir.Model) -> None:
    """Give a name to every output of a recurrent operator, also where nobody reads it, in place."""
    # Case 2.
    for node in model.graph:
        if node.domain != "" or node.op_type not in RECURRENT:
            continue
        node.resize_outputs(RECURRENT[node.op_type])
        weight = node.inputs[1]
        assert weight is not None
        for number, output in enumerate(node.outputs):
            output.name = output.name or f"{weight.name}.unused_{number}"


def split_products(model: ir.Model) -> None:
    """Write each Gemm with a computed C as MatMul and Add, in place."""
    # Case 1.
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if _adds_computed(node):
                _split(graph, node)


def _adds_computed(node: ir.Node) -> bool:
    """Whether a node is such a Gemm, with nothing else than a transposed constant weight."""
    if node.op_type != "Gemm" or node.domain != "" or len(node.inputs) < 3:
        return False
    added = node.inputs[2]
    if added is None or added.const_value is not None:
        return False
    attributes = node.attributes
    is_plain = all(
        name not in attributes or attributes[name].as_float() == 1.0 for name in ("alpha", "beta")
    )
    turns_rows = "transA" in attributes and attributes["transA"].as_int() != 0
    return is_plain and not turns_rows


def _split(graph: ir.Graph, node: ir.Node) -> None:
    rows, weight, added = node.inputs
    name = node.outputs[0].name
    nodes = []
    if "transB" in node.attributes and node.attributes["transB"].as_int():
        turn = ir.node("Transpose", [weight], attributes={"perm": [1, 0]})
        weight = turn.outputs[0]
        weight.name = f"{name}.weight"
        nodes.append(turn)
    product = ir.node("MatMul", [rows, weight])
    product.outputs[0].name = f"{name}.product"
    total = ir.node("Add", [product.outputs[0], added])
    total.outputs[0].name = name
    replace_node(graph, node, [*nodes, product, total], total.outputs)
