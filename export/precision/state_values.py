"""What follows from the states of loops: the products of that are of eight bits in `int8_products="state"`."""

from collections.abc import Iterable, Iterator

import onnx_ir as ir


def state_values(graph: ir.Graph) -> set[ir.Value]:
    """The values in the bodies of loops (`Scan`) that follow from a state of a loop around them.

    What a loop returns does not follow from its states for what comes after it, as the input of a second layer does not
    count as a state of the first.
    """
    return values_from(graph, ())


def values_from(graph: ir.Graph, states: Iterable[ir.Value]) -> set[ir.Value]:
    """The values that follow from some values of a graph, these included; and those of `state_values`."""
    values = set(states)
    _add(graph, values)
    return values


def _add(graph: ir.Graph, values: set[ir.Value]) -> None:
    """Add what follows from `values` in a graph, and what follows in its loops from their states."""
    for node in graph:
        if not values.isdisjoint(_read(node)):
            values.update(node.outputs)
        for body in _bodies(node):
            values.update(_carried(node, body, values))
            _add(body, values)


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def _read(node: ir.Node) -> Iterator[ir.Value | None]:
    """The inputs of a node, and of those in its bodies."""
    yield from node.inputs
    for body in _bodies(node):
        for inner in body.all_nodes():
            yield from inner.inputs


def _carried(node: ir.Node, body: ir.Graph, values: set[ir.Value]) -> Iterator[ir.Value]:
    """The inputs of a loop's body that are states, or steps of a sequence that follows from an outer one."""
    if node.op_type != "Scan":
        return
    states = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
    for number, (inner, outer) in enumerate(zip(body.inputs, node.inputs, strict=True)):
        if number < states or outer in values:
            yield inner
