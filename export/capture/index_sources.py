"""`Sources`: from which inputs of a graph the values of an index come, and what is added to them on the way."""

from collections.abc import Iterator
from typing import NamedTuple, TypeGuard

import onnx_ir as ir

from deploy_rnn.tensor_spec import IndexRange

from .least_values import CHOOSES, KEEPS_VALUES, MOST_OPERATORS, LeastValues, constant
from .slices import is_reversal, whole_of

_WHOLE_NUMBERS = frozenset(
    {
        ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
        ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
    }
)  # fmt: skip


class Source(NamedTuple):
    """Where values of an index come from: each is `sign` times a value, plus an offset.

    Attributes:
        value: an input of the graph, or what the index was followed to; None for what cannot be followed.
        sign: 1 or -1.
        least, most: the offsets, which may differ from place to place.
        is_whole: whether all values of `value` are among them.
    """

    value: ir.Value | None
    sign: int = 1
    least: int = 0
    most: int = 0
    is_whole: bool = True

    def range_for(self, rows: int) -> IndexRange:
        """The values that may be in a table of this many rows; where offsets differ, not all of them everywhere."""
        if self.sign > 0:
            return IndexRange(-self.most, rows - 1 - self.least)
        return IndexRange(self.least - (rows - 1), self.most)

    def least_index(self, values: IndexRange) -> int:
        """The lowest index that values in a range give."""
        return self.least + (values.least if self.sign > 0 else -values.most)

    def plus(self, numbers: list[int]) -> "Source":
        """The same before one of these numbers was added."""
        offsets = [self.sign * number for number in numbers]
        return self._replace(least=self.least + min(offsets), most=self.most + max(offsets))


class Sources:
    """Follows indices back to the inputs of a graph, also out of its loops and branches.

    Args:
        graph: the main graph.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._inputs = set(graph.inputs)
        self._least_values = LeastValues()
        self._before_loops: dict[ir.Value, list[tuple[ir.Value | None, bool]]] = {}
        for inner_graph in (graph, *graph.subgraphs()):
            for node in inner_graph:
                self._before_loops |= _before_loop(node)

    def of(self, index: ir.Value) -> list[Source]:
        """The sources of those of its values that may be below 0."""
        found: dict[Source, None] = {}
        seen: set[Source] = set()
        # Each with the number of operators that were followed to it.
        waiting = [(Source(index), 0)]
        while waiting:
            source, depth = waiting.pop()
            if source in seen or self._is_never_below_zero(source):
                continue
            seen.add(source)
            earlier = [] if depth > MOST_OPERATORS else self._earlier(source)
            if source.value in self._inputs and _is_whole(source.value):
                found[source] = None
            elif earlier:
                waiting += [(before, depth + 1) for before in earlier]
            else:
                found[Source(None)] = None
        return list(found)

    def _is_never_below_zero(self, source: Source) -> bool:
        return source.sign > 0 and self._least_values.of(source.value) + source.least >= 0

    def _earlier(self, source: Source) -> list[Source]:
        """From what a value is computed; nothing if it cannot be followed."""
        value = source.value
        if not _is_whole(value):
            return []
        in_part = source._replace(is_whole=False)
        if value in self._before_loops:
            return [
                (source if is_whole else in_part)._replace(value=before)
                for before, is_whole in self._before_loops[value]
            ]
        node = value.producer()
        if node is None or node.domain != "":
            return []
        whole = whole_of(node)
        if whole is not None:
            return [source._replace(value=whole)]
        first = node.inputs[0] if node.inputs else None
        if node.op_type in KEEPS_VALUES or is_reversal(node):
            return [source._replace(value=first)]
        if node.op_type in CHOOSES:
            return [in_part._replace(value=first)] if value is node.outputs[0] else []
        return list(_operands(source, node))


def _is_whole(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether these are whole numbers, as far as is known."""
    return value is not None and (value.dtype is None or value.dtype in _WHOLE_NUMBERS)


def _operands(source: Source, node: ir.Node) -> Iterator[Source]:
    """What goes into an operator that combines or changes values; nothing if it is not known what it does."""
    in_part = source._replace(is_whole=False)
    match node.op_type:
        case "Concat":
            yield from (source._replace(value=value) for value in node.inputs)
        case "Where":
            yield from (in_part._replace(value=value) for value in node.inputs[1:])
        case "Pad":
            counts = constant(node.inputs[1])
            cuts_nothing = counts is not None and counts.min(initial=0) >= 0
            yield (source if cuts_nothing else in_part)._replace(value=node.inputs[0])
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                yield in_part._replace(value=node.inputs[2])
        case "If":
            number = source.value.index() if source.value is not None else None
            for name in ("then_branch", "else_branch"):
                branch = node.attributes[name].as_graph()
                yield in_part._replace(value=branch.outputs[number or 0])
        case "Neg":
            yield source._replace(value=node.inputs[0], sign=-source.sign)
        case "Add" | "Sub":
            yield from _before_adding(source, node)


def _before_adding(source: Source, node: ir.Node) -> Iterator[Source]:
    """A number is added to a value, or one of the two is subtracted from the other."""
    first, second = node.inputs
    sign = -1 if node.op_type == "Sub" else 1
    first_numbers, second_numbers = constant(first), constant(second)
    if second_numbers is not None and second_numbers.size:
        added = [sign * int(second_numbers.min()), sign * int(second_numbers.max())]
        yield source.plus(added)._replace(value=first)
    elif first_numbers is not None and first_numbers.size:
        added = [int(first_numbers.min()), int(first_numbers.max())]
        yield source.plus(added)._replace(value=second, sign=sign * source.sign)


def _before_loop(node: ir.Node) -> dict[ir.Value, list[tuple[ir.Value | None, bool]]]:
    """Inputs of the body of a loop, and its outputs -> what they are before or in the loop, and whether all of it."""
    if node.domain != "" or node.op_type not in ("Scan", "Loop"):
        return {}
    body = node.attributes["body"].as_graph()
    # The first inputs of a Loop count its steps, and its first output says whether it goes on.
    is_scan = node.op_type == "Scan"
    inner = body.inputs if is_scan else body.inputs[2:]
    outer = node.inputs if is_scan else node.inputs[2:]
    results = body.outputs if is_scan else body.outputs[1:]
    states = len(inner) - (node.attributes.get_int("num_scan_inputs") if is_scan else 0)
    # A Loop may have no steps.
    links = {value: [(before, is_scan)] for value, before in zip(inner, outer, strict=True)}
    for value, result in zip(inner[:states], results, strict=False):
        links[value].append((result, False))
    for number, output in enumerate(node.outputs):
        links[output] = [(results[number], False)]
        if number < states and not is_scan:
            links[output].append((outer[number], False))
    return links
