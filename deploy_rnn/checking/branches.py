"""Branches on a size: torch.export follows one side of each, and knows the condition under which it did."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.utils._sympy.printers import PythonPrinter

from deploy_rnn.tensor_spec import ANY_SIZE, Ranges, SizeRange

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

    def renamed(self, names: Mapping[str, str]) -> "Condition":
        """The same with other names of the axes."""
        axes = {symbol: renamed(axis, names) for symbol, axis in self.axes.items()}
        return Condition(self.expression, axes)

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
        return renamed(text, self.axes)


def conditions_on(sizes: Mapping[str, torch.SymInt]) -> list[Condition]:
    """The conditions under which a model was traced, as far as they are on the sizes of its inputs alone.

    sizes: name of each dynamic axis -> its size in torch.export's graph.
    """
    axes = {str(size.node.expr): name for name, size in sizes.items()}
    expressions: dict[sympy.Basic, None] = {}
    for size in sizes.values():
        expressions |= dict.fromkeys(_assumed(size.node.shape_env))
    return [
        Condition(expression, axes)
        for expression in expressions
        if {str(symbol) for symbol in expression.free_symbols} <= axes.keys()
    ]


def _assumed(shape_env: Any) -> list[sympy.Basic]:
    """What torch.export took to be true of the sizes when it went one way."""
    asserts = itertools.chain.from_iterable(shape_env.deferred_runtime_asserts.values())
    return [guard.expr for guard in (*shape_env.guards, *asserts)]


def renamed(text: str, names: Mapping[str, str]) -> str:
    """An expression with the names in it replaced, as far as they are among `names`."""
    return re.sub(r"[A-Za-z_]\w*", lambda symbol: names.get(symbol[0], symbol[0]), text)
