"""Inputs whose values are indices into a table, as tokens are into an embedding."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

_KEEPS_VALUES = frozenset(
    {
        "Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "ReverseSequence", "Squeeze", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip
"""Operators whose result has all values of their first input (`Concat`: of all inputs), in some order. A `Slice` that
reverses an axis is another one."""

_LEAST_END = -(2**31) + 1
"""An end of a `Slice` that is as low or lower is beyond the first place of any axis."""

_WHOLE_NUMBERS = frozenset(
    {
        ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
        ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
    }
)  # fmt: skip


def table_rows(graph: ir.Graph) -> dict[str, int]:
    """Inputs of a captured graph that are looked up in a table, whatever else is done with them -> rows of the table.

    PyTorch refuses an index below 0 or beyond the table. Gather takes one below 0 for one that counts from the end.
    `table[index]`, where PyTorch means that too, is captured as GatherND, and is left out.

    An input that only a part of a run looks up is left out: one that is clipped, cut or chosen from before, or that not
    all branches of an If look up.
    """
    inputs = set(graph.inputs)
    rows = _lookups(graph)
    return {str(value.name): least for value, least in rows.items() if value in inputs}


def _lookups(graph: ir.Graph) -> dict[ir.Value, int]:
    """Values that are looked up in a graph for certain, which are inputs of it or of a graph around it -> rows."""
    found: dict[ir.Value, int] = {}
    for node in graph:
        if node.domain != "":
            continue
        if node.op_type == "Gather":
            _add(found, _gathered(node))
        elif node.op_type == "Scan":
            _add(found, _in_loop(node))
        elif node.op_type == "If":
            _add(found, _in_both_branches(node))
    return found


def _add(found: dict[ir.Value, int], more: Mapping[ir.Value, int]) -> None:
    for value, rows in more.items():
        found[value] = min(rows, found.get(value, rows))


def _gathered(node: ir.Node) -> dict[ir.Value, int]:
    table, indices = node.inputs
    axis = node.attributes.get_int("axis", 0)
    if table is None or indices is None or axis != 0 or not table.shape:
        return {}
    rows = table.shape[0]
    if not isinstance(rows, int) or rows < 1:
        return {}
    return dict.fromkeys(_sources(indices), rows)


def _in_loop(node: ir.Node) -> dict[ir.Value, int]:
    """A loop has one step at least, and goes through all values of its sequences."""
    body = node.attributes["body"].as_graph()
    outer = dict(zip(body.inputs, node.inputs, strict=True))
    found: dict[ir.Value, int] = {}
    for value, rows in _lookups(body).items():
        source = outer.get(value, value)
        if source is not None:
            _add(found, dict.fromkeys(_sources(source), rows))
    return found


def _in_both_branches(node: ir.Node) -> dict[ir.Value, int]:
    first = _lookups(node.attributes["then_branch"].as_graph())
    second = _lookups(node.attributes["else_branch"].as_graph())
    return {value: max(rows, second[value]) for value, rows in first.items() if value in second}


def _sources(value: ir.Value) -> Iterator[ir.Value]:
    """The inputs, of any graph, all of whose values are among those of a value of whole numbers."""
    if value.dtype is not None and value.dtype not in _WHOLE_NUMBERS:
        return
    producer = value.producer()
    if producer is None:
        if not value.is_initializer():
            yield value
    elif producer.domain == "" and (producer.op_type in _KEEPS_VALUES or _reverses(producer)):
        inputs = list(producer.inputs)
        if producer.op_type != "Concat":
            inputs = inputs[:1]
        for source in inputs:
            if source is not None:
                yield from _sources(source)


def _reverses(node: ir.Node) -> bool:
    """Whether a node turns whole axes round, as `flip` does."""
    if node.op_type != "Slice" or len(node.inputs) < 5:
        return False
    _, starts, ends, _, steps = node.inputs
    is_from_last = _numbers(starts) == {-1}
    is_to_first = max(_numbers(ends), default=0) <= _LEAST_END
    return is_from_last and is_to_first and _numbers(steps) == {-1}


def _numbers(value: ir.Value | None) -> set[int]:
    """The numbers in a constant; none in what is not one."""
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    return set() if constant is None else set(constant.numpy().ravel().tolist())
