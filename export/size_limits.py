"""For which sizes a traced graph holds: torch.export follows one side of each branch on a size."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.utils._sympy.printers import PythonPrinter

from deploy_rnn.tensor_spec import ANY_SIZE, Ranges, SizeRange

NO_LIMIT = 2**30
"""Sizes from which on a limit is none: PyTorch's own, such as that of an index, and not one of the model."""

LARGEST_END = 2048
"""The largest size that is tried because a branch is there; a larger one would take minutes."""

SMALL_SIZES = 16
"""A size beyond a branch is looked for up to this one, and next to the numbers of the branch's condition."""


@dataclass(frozen=True)
class Condition:
    """What the sizes must fulfil for a graph to hold, where that is not a range: the model branched on it.

    Attributes:
        expression: of torch.export's symbols.
        axes: name of each symbol -> the axis that has this size.
    """

    expression: sympy.Basic
    axes: Mapping[str, str]

    @property
    def names(self) -> frozenset[str]:
        """The axes whose sizes it is about."""
        return frozenset(self.axes[str(symbol)] for symbol in self.expression.free_symbols)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true of these sizes; also if it makes no sense for them, as where nothing is left to divide."""
        values = {symbol: sizes[self.axes[str(symbol)]] for symbol in self.expression.free_symbols}
        try:
            return bool(self.expression.subs(values))
        except (
            ArithmeticError,
            AssertionError,
            TypeError,
            ValueError,
        ):  # of torch.export's functions
            return True

    def broken(self, sizes: Mapping[str, int], ranges: Ranges) -> list[dict[str, int]]:
        """Return sizes for which it is not true: the smallest and the largest that are found with the fewest changes.

        Two, since another branch may hide behind this one (`T % 4 == 0 and T > 8`).

        sizes: those of the example.
        ranges: in which the sizes must be.
        """
        for count in (1, 2):
            for changed in itertools.combinations(sorted(self.names), count):
                candidates = [self._candidates(ranges.get(name, ANY_SIZE)) for name in changed]
                found = []
                for values in itertools.product(*candidates):
                    other_sizes = {**sizes, **dict(zip(changed, values, strict=True))}
                    if not self.holds(other_sizes):
                        found.append(other_sizes)
                if found:
                    return [found[0], found[-1]] if len(found) > 1 else found
        return []

    def _candidates(self, limits: SizeRange) -> list[int]:
        numbers = {abs(int(number)) for number in self.expression.atoms(sympy.Integer)}
        products = {first * second for first in numbers for second in numbers}
        found = set(range(1, SMALL_SIZES + 1))
        for number in numbers | products:
            found |= {number - 1, number, number + 1}
        return sorted(size for size in found if 1 <= size <= LARGEST_END and limits.takes(size))

    def __str__(self) -> str:
        text: str = PythonPrinter().doprint(self.expression)
        return _rename(text, self.axes)


@dataclass(frozen=True)
class SizeLimits:
    """For which sizes of its dynamic axes a graph holds.

    Attributes:
        ranges: axes that may not have every size -> those that they may have.
        conditions: what else must be true of the sizes.
    """

    ranges: Ranges = field(default_factory=dict)
    conditions: Sequence[Condition] = ()

    @classmethod
    def of(cls, program: torch.onnx.ONNXProgram, examples: Sequence[torch.Tensor]) -> "SizeLimits":
        """From a traced program; an axis is called as in the inputs of its graph.

        examples: the tensors that it was traced with.
        """
        assert program.exported_program is not None
        known_ranges = program.exported_program.range_constraints
        ranges = {}
        symbols: dict[str, str] = {}
        expressions: dict[sympy.Basic, None] = {}
        for name, size, example_size in _input_sizes(program, examples):
            symbols[str(size.node.expr)] = name
            expressions |= dict.fromkeys(_assumed(size.node.shape_env))
            bounds = known_ranges.get(size.node.expr)
            if bounds is None:
                continue
            limits = size_range(bounds.lower, bounds.upper)
            # With an example of size 1, torch.export may note a range of 1 to 2, where it need only know that the size
            # may be 1. If that is a branch after all, the check finds it at other sizes.
            is_by_example = example_size == 1 and limits.most == 2
            if limits.is_limited and limits.takes(example_size) and not is_by_example:
                ranges[name] = limits
        conditions = [
            Condition(expression, symbols)
            for expression in expressions
            if {str(symbol) for symbol in expression.free_symbols} <= symbols.keys()
        ]
        return cls(ranges, conditions)

    def renamed(self, names: Mapping[str, str]) -> "SizeLimits":
        """The same with other names of the axes; axes that get one name have one range."""
        ranges: dict[str, SizeRange] = {}
        for axis, limits in self.ranges.items():
            name = _rename(axis, names)
            ranges[name] = limits.within(ranges.get(name, ANY_SIZE))
        conditions = []
        for condition in self.conditions:
            axes = {symbol: _rename(axis, names) for symbol, axis in condition.axes.items()}
            conditions.append(Condition(condition.expression, axes))
        return SizeLimits(ranges, conditions)


def size_range(least: Any, most: Any) -> SizeRange:
    """The range that torch.export writes with these ends, which may be sympy's numbers."""
    is_open = bool(most >= NO_LIMIT)
    return SizeRange(max(1, int(least)), None if is_open else int(most))


def _assumed(shape_env: Any) -> list[sympy.Basic]:
    """What torch.export took to be true of the sizes when it went one way."""
    asserts = itertools.chain.from_iterable(shape_env.deferred_runtime_asserts.values())
    return [guard.expr for guard in (*shape_env.guards, *asserts)]


def _input_sizes(
    program: torch.onnx.ONNXProgram, examples: Sequence[torch.Tensor]
) -> Iterator[tuple[str, torch.SymInt, int]]:
    """The dynamic sizes of the inputs: as the graph calls them, as torch.export has them, and of the example."""
    assert program.exported_program is not None
    names = program.exported_program.graph_signature.user_inputs
    values = [
        node.meta["val"] for node in program.exported_program.graph.nodes if node.name in names
    ]
    # A number among the arguments is no input of the graph.
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    inputs = program.model.graph.inputs
    for graph_input, tensor, example in zip(inputs, tensors, examples, strict=False):
        if graph_input.shape is None:
            continue
        for name, size, example_size in zip(
            graph_input.shape, tensor.shape, example.shape, strict=True
        ):
            # A size that is known is an int, whatever its type says.
            if isinstance(size, torch.SymInt):
                yield str(name), size, example_size


def _rename(text: str, names: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda symbol: names.get(symbol[0], symbol[0]), text)
