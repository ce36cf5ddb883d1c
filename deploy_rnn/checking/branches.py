"""Branches on a size: torch.export follows one side of each, and knows the condition under which it did."""

import itertools
import math
import re
from collections.abc import Callable, Mapping
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


_COMPARISONS = (
    sympy.StrictLessThan,
    sympy.LessThan,
    sympy.StrictGreaterThan,
    sympy.GreaterThan,
)

PROBED_SIZES = 256
"""Every size up to this one is probed for the range of a condition; beyond it, one in each doubling."""


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

    def size_range(self, example_size: int) -> SizeRange | None:
        """Return the sizes of its axis for which it is true, if they are a range with an end to it.

        Only of comparisons, as a branch and a least size are: that a size is not 1 may be a mere note of torch.export.
        PyTorch finds such a range itself where the expression is simple.

        example_size: of the axis in the example.
        """
        relations = self.expression.atoms(sympy.core.relational.Relational)
        if not all(isinstance(relation, _COMPARISONS) for relation in relations):
            return None
        if len(self.expression.free_symbols) != 1:
            return None
        holds = self._function()
        probes = _probes(example_size)
        runs = [(is_true, [*sizes]) for is_true, sizes in itertools.groupby(probes, key=holds)]
        true_runs = [number for number, (is_true, _) in enumerate(runs) if is_true]
        if len(true_runs) != 1:
            return None
        number = true_runs[0]
        _, inside = runs[number]
        if example_size not in inside:
            return None
        least, most = inside[0], None
        if number > 0:
            least = _end(holds, least, runs[number - 1][1][-1])
        if number < len(runs) - 1:
            most = _end(holds, inside[-1], runs[number + 1][1][0])
        found = SizeRange(least, most)
        return found if found.is_limited else None

    def _function(self) -> Callable[[int], bool]:
        """It as a function of the size of its one axis; true where it makes no sense, as in `holds`."""
        compute = sympy.lambdify(
            [*self.expression.free_symbols], self.expression, [{"math": math}], PythonPrinter()
        )

        def holds(size: int) -> bool:
            try:
                return bool(compute(size))
            except (ArithmeticError, TypeError, ValueError):
                return True

        return holds

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


def _probes(example_size: int) -> list[int]:
    """Sizes that tell the range of a condition, in order, the example's among them."""
    sizes = {*range(1, PROBED_SIZES + 1), example_size}
    size = PROBED_SIZES
    while size < 2 * max(example_size, LARGEST_END):
        size *= 2
        sizes.add(size)
    return sorted(sizes)


def _end(holds: Callable[[int], bool], inside: int, outside: int) -> int:
    """The last size for which it holds, on the way from one that it holds for to one that it does not hold for."""
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside


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
