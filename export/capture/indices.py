"""What the inputs of a graph may be if they are indices into a table, as tokens are into an embedding.

PyTorch refuses an index below 0 or beyond the table. ONNX takes one below 0 for one that counts from the end.
`table[index]`, where PyTorch means that too, is captured as GatherND, and is left out.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import onnx_ir as ir

from deploy_rnn.tensor_spec import IndexRange

from .index_sources import Source, Sources

_LOOKUPS = frozenset({"Gather", "GatherElements", "ScatterElements"})
"""Operators whose second input has indices into the first."""

_BEYOND = 2**31 - 1
"""No table has as many rows."""


class Lookup(NamedTuple):
    """A node that looks up indices which the graph computes, or gets.

    Attributes:
        node: the node.
        indices: its second input.
        rows: of the table; None where they are not a number.
    """

    node: ir.Node
    indices: ir.Value
    rows: int | None


def index_ranges(graph: ir.Graph) -> dict[str, IndexRange]:
    """Inputs of a captured graph that are looked up in a table, whatever else is done with them -> what they may be.

    An input that only a part of a run looks up is left out: one that is clipped, cut or chosen from before, or that not
    all branches of an If look up.
    """
    ranges = _certain_ranges(graph, Sources(graph))
    return {str(value.name): found for value, found in ranges.items()}


def refuse_below_zero(graph: ir.Graph, checked: Mapping[str, IndexRange]) -> None:
    """Put a number beyond every table in the place of each index below 0, in place.

    That takes two nodes, which are left out where an index cannot be below 0.

    Args:
        graph: a captured one.
        checked: inputs that are checked before a run, and what they may be.
    """
    sources = Sources(graph)
    lookups = [
        lookup
        for inner_graph in (graph, *graph.subgraphs())
        for lookup in _lookups(inner_graph)
        if not all(_is_checked(source, checked) for source in sources.of(lookup.indices))
    ]
    for number, lookup in enumerate(lookups):
        _refuse_below_zero(graph, lookup, f"{lookup.indices.name}.lookup{number}")


def _lookups(graph: ir.Graph) -> Iterator[Lookup]:
    """Those of one graph, without the graphs in it."""
    for node in graph:
        if node.domain != "" or node.op_type not in _LOOKUPS:
            continue
        table, indices = node.inputs[:2]
        if table is None or indices is None or ir.convenience.get_const_tensor(indices) is not None:
            continue
        # A single number may be that of `select`, which counts from the end in PyTorch, too.
        if node.op_type == "Gather" and indices.shape is not None and len(indices.shape) == 0:
            continue
        rows = table.shape[node.attributes.get_int("axis", 0)] if table.shape else None
        yield Lookup(node, indices, rows if isinstance(rows, int) and rows > 0 else None)


def _certain_ranges(graph: ir.Graph, sources: Sources) -> dict[ir.Value, IndexRange]:
    """The inputs of the main graph that this graph looks up in every run."""
    found: dict[ir.Value, IndexRange] = {}
    for lookup in _lookups(graph):
        for source in sources.of(lookup.indices):
            if source.value is not None and source.is_whole and lookup.rows is not None:
                _narrow(found, {source.value: source.range_for(lookup.rows)})
    for node in graph:
        # A Scan has one step at least.
        if node.op_type == "Scan":
            _narrow(found, _certain_ranges(node.attributes["body"].as_graph(), sources))
        elif node.op_type == "If":
            first, second = (
                _certain_ranges(node.attributes[name].as_graph(), sources)
                for name in ("then_branch", "else_branch")
            )
            _narrow(found, _in_either(first, second))
    return found


def _narrow(found: dict[ir.Value, IndexRange], more: Mapping[ir.Value, IndexRange]) -> None:
    """Add ranges; of two for the same value, what both allow."""
    for value, new in more.items():
        found[value] = found.get(value, new).within(new)


def _in_either(
    first: Mapping[ir.Value, IndexRange], second: Mapping[ir.Value, IndexRange]
) -> dict[ir.Value, IndexRange]:
    """What one of two branches allows, for the values that both have."""
    return {
        value: IndexRange(min(one.least, second[value].least), max(one.most, second[value].most))
        for value, one in first.items()
        if value in second
    }


def _is_checked(source: Source, checked: Mapping[str, IndexRange]) -> bool:
    """Whether an index from this source is 0 or more since its input is checked."""
    limits = None if source.value is None else checked.get(str(source.value.name))
    return limits is not None and source.least_index(limits) >= 0


def _refuse_below_zero(graph: ir.Graph, lookup: Lookup, name: str) -> None:
    """Write the nodes; `graph` is the main one, and has the constants."""
    indices = lookup.indices
    dtype = indices.dtype or ir.DataType.INT64
    zero, beyond = (
        _constant(graph, f"{name}.{suffix}", number, dtype)
        for suffix, number in (("zero", 0), ("beyond", _BEYOND))
    )
    is_below = ir.node("Less", [indices, zero], name=f"{name}.is_below_zero")
    checked = ir.node("Where", [is_below.outputs[0], beyond, indices], name=f"{name}.checked")
    for node, result_dtype in ((is_below, ir.DataType.BOOL), (checked, dtype)):
        node.outputs[0].name = node.name
        node.outputs[0].shape = indices.shape
        node.outputs[0].type = ir.TensorType(result_dtype)
    assert lookup.node.graph is not None
    lookup.node.graph.insert_before(lookup.node, [is_below, checked])
    lookup.node.replace_input_with(1, checked.outputs[0])


def _constant(graph: ir.Graph, name: str, number: int, dtype: ir.DataType) -> ir.Value:
    tensor = ir.tensor(number, dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
