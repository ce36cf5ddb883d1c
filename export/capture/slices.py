"""Slices that leave nothing out: one that turns an axis round, as `flip` does, and those that `roll` joins again."""

import onnx_ir as ir

from .least_values import constant

_END = 2**31 - 1
"""An end of a `Slice` that is as high or higher is beyond the last place of any axis; its negative, before the
first."""

Place = int | ir.Value
"""Where a slice begins or ends: a number, or what the graph computes."""


def is_reversal(node: ir.Node) -> bool:
    """Whether a node turns whole axes round."""
    if node.op_type != "Slice" or len(node.inputs) < 5:
        return False
    starts, ends, _, steps = map(constant, node.inputs[1:5])
    if starts is None or ends is None or steps is None:
        return False
    return bool((starts == -1).all() and (ends <= -_END).all() and (steps == -1).all())


def whole_of(node: ir.Node) -> ir.Value | None:
    """What a node joins from its parts, which may be in another order; None for anything else."""
    if node.op_type != "Concat":
        return None
    ends: dict[Place, Place] = {}
    whole = None
    for part in node.inputs:
        found = _part_of(part, node.attributes.get_int("axis"))
        if found is None or whole not in (None, found[0]):
            return None
        whole, start, end = found
        ends[start] = end
    place: Place = 0
    for _ in range(len(ends)):
        place = ends.get(place, place)
    return whole if place == _END else None


def _part_of(value: ir.Value | None, axis: int) -> tuple[ir.Value, Place, Place] | None:
    """Of what a value is a slice along this axis, and from where to where; None if it is not."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Slice" or node.domain != "" or len(node.inputs) < 4:
        return None
    whole, start, end, axes = node.inputs[:4]
    step = constant(node.inputs[4]) if len(node.inputs) > 4 else None
    sliced = constant(axes)
    if whole is None or whole.shape is None or start is None or end is None or sliced is None:
        return None
    is_along_axis = [number % len(whole.shape) for number in sliced.tolist()] == [
        axis % len(whole.shape)
    ]
    if not is_along_axis or (step is not None and step.tolist() != [1]):
        return None
    return whole, _place(start, whole, axis), _place(end, whole, axis)


def _place(value: ir.Value, whole: ir.Value, axis: int) -> Place:
    numbers = constant(value)
    if numbers is not None:
        return min(int(numbers.item()), _END)
    return _END if _is_size(value, whole, axis) else value


def _is_size(value: ir.Value, whole: ir.Value, axis: int) -> bool:
    """Whether a value is the size of an axis."""
    node = value.producer()
    if node is None or node.op_type != "Shape" or node.inputs[0] is not whole:
        return False
    axis %= len(whole.shape or ())
    start = node.attributes.get_int("start", 0)
    return start == axis and node.attributes.get_int("end", 0) == axis + 1
