"""`cpp_checks`: conditions on sizes as C++."""

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from deploy_rnn.checking.branches import Condition
from deploy_rnn.errors import ExportError
from deploy_rnn.packaging.size_checks import cpp_checks

B, T = sympy.symbols("s0 s1", integer=True, positive=True)
SIZES = {"B": "all_sizes[0]", "T": "all_sizes[1]"}


def condition(expression: sympy.Basic) -> Condition:
    return Condition(expression, {"s0": "B", "s1": "T"})


def test_conditions_are_written_in_cpp() -> None:
    text = cpp_checks(
        [condition(T <= 6 * B), condition(sympy.Eq(Mod(FloorDiv(T - 5, 3), B), 0))], SIZES
    )
    first, second = text.splitlines()
    assert first == (
        "if (!(all_sizes[1] <= (6 * all_sizes[0]))) throw std::runtime_error("
        '"the sizes must be such that T <= 6*B; the model refuses others, or goes another way.");'
    )
    quotient = "floor_quotient(((-5) + all_sizes[1]), 3)"
    remainder = f"({quotient} - all_sizes[0] * floor_quotient({quotient}, all_sizes[0]))"
    assert second.strip().startswith(f"if (!({remainder} == 0)) throw")


def test_a_condition_that_cannot_be_written() -> None:
    with pytest.raises(ExportError, match=r"holds only where .*, which a file cannot check; leave"):
        cpp_checks([condition(sympy.Function("f")(T) > B)], SIZES)
