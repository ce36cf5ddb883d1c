"""`LeastValues`: what no value in a graph is below, whatever its inputs are."""

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

MOST_OPERATORS = 200
"""How many operators are followed, one behind the other: more than anybody writes, and fewer than Python's stack has
room for."""

KEEPS_VALUES = frozenset(
    {
        "Cast", "Expand", "Flatten", "Identity", "Reshape", "ReverseSequence", "Squeeze", "Tile", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip
"""Operators whose result has all values of their first input, in some order."""

CHOOSES = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split", "TopK"})
"""Operators whose result has some values of their first input."""

_NEVER_BELOW_ZERO = frozenset({"Abs", "ArgMax", "ArgMin", "NonZero", "Relu", "Shape", "Size"})

_ROUND = frozenset({"Ceil", "Floor", "ReduceMax", "ReduceMin", "Round"})
"""Operators whose result is not below the next lower whole number."""

_GROWS = frozenset({"CumSum", "Mul", "ReduceProd", "ReduceSum"})
"""Operators whose result is 0 or more if their operands are."""

_UNSIGNED = frozenset(
    {ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}
)  # fmt: skip


class LeastValues:
    """Finds them, each once."""

    def __init__(self) -> None:
        self._found: dict[ir.Value, float] = {}

    def of(self, value: ir.Value | None, depth: int = 0) -> float:
        """A number that no value is below; -inf if none is known.

        Args:
            value: of any graph; None for an operand that is left out.
            depth: how many operators were followed to it.
        """
        if value is None or depth > MOST_OPERATORS:
            return -math.inf
        if value not in self._found:
            # Of a value that a loop computes from itself, nothing is known.
            self._found[value] = -math.inf
            self._found[value] = self._compute(value, depth)
        return self._found[value]

    def _compute(self, value: ir.Value, depth: int) -> float:
        numbers = constant(value)
        if numbers is not None:
            return float(numbers.min()) if numbers.size else 0.0
        if value.dtype in _UNSIGNED:
            return 0.0
        node = value.producer()
        if node is None or node.domain != "":
            return -math.inf

        def least(number: int) -> float:
            operand = node.inputs[number] if number < len(node.inputs) else None
            return self.of(operand, depth + 1)

        if node.op_type in _NEVER_BELOW_ZERO:
            return 0.0
        if node.op_type == "TopK" and value is node.outputs[1]:
            return 0.0
        if node.op_type in KEEPS_VALUES | CHOOSES | _ROUND:
            return _round_down(least(0))
        if node.op_type in _GROWS:
            count = 2 if node.op_type == "Mul" else 1
            return 0.0 if min(map(least, range(count))) >= 0 else -math.inf
        return _of_operands(node, least)


def _of_operands(node: ir.Node, least: Callable[[int], float]) -> float:
    """For operators that combine several values; `least` is that of the input of a number."""
    count = len(node.inputs)
    match node.op_type:
        case "Add":
            return least(0) + least(1)
        case "BitwiseAnd":
            return 0.0 if max(least(0), least(1)) >= 0 else -math.inf
        case "Clip":
            # The lower end, unless the upper one is below it.
            lower = max(least(0), least(1))
            return min(lower, least(2)) if count > 2 and node.inputs[2] is not None else lower
        case "Concat" | "Min":
            return min(map(least, range(count)))
        case "Max":
            return max(map(least, range(count)))
        case "Mod":
            has_sign_of_divisor = node.attributes.get_int("fmod", 0) == 0
            return 0.0 if has_sign_of_divisor and least(1) > 0 else -math.inf
        case "Pad":
            fill = least(2) if count > 2 and node.inputs[2] is not None else 0.0
            return min(least(0), fill)
        case "Range":
            return least(0) if least(2) >= 0 else -math.inf
        case "Where":
            return min(least(1), least(2))
    return -math.inf


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers in a constant; None for what is not one."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _round_down(number: float) -> float:
    return number if math.isinf(number) else float(math.floor(number))
