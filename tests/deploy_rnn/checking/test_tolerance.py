"""What differences pass: a limit for each precision, never less than rounding explains."""

import numpy as np
import pytest
import torch
from torch import nn

from deploy_rnn.checking.tolerance import Expected, Tolerance, model_precision


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("precision", "share"), [("float32", 1e-5), ("float64", 1e-9)])
def test_the_default_goes_by_precision_not_by_the_outputs_dtype(
    precision: str, share: float, dtype: str
) -> None:
    expected = Expected(np.array([0.0, -0.5, 4.0], dtype), rounding=0.0)
    np.testing.assert_allclose(
        Tolerance(precision=precision).allowed(expected), [share, share, 4 * share]
    )


def test_rounding_widens_the_default_up_to_a_limit() -> None:
    values = np.array([0.5, 2.0], np.float32)
    np.testing.assert_allclose(Tolerance().allowed(Expected(values, rounding=1e-4)), [1e-3, 2e-3])
    np.testing.assert_allclose(Tolerance().allowed(Expected(values, rounding=1.0)), [1e-2, 2e-2])


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_whole_numbers_and_booleans_must_be_equal(dtype: str, precision: str) -> None:
    expected = Expected.of(np.array([0, 1], dtype), np.array([0, 1], dtype))
    assert Tolerance(precision=precision).allowed(expected).tolist() == [0, 0]


def test_limits_replace_the_default() -> None:
    expected = Expected(np.array([0.0, 2.0], np.float32), rounding=1e-4)
    assert Tolerance(atol=0.5, rtol=0.25, precision="float64").allowed(expected).tolist() == [
        0.5,
        1.0,
    ]
    assert Tolerance(rtol=0.25).allowed(expected).tolist() == [0, 0.5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"atol": -1.0}, "`atol` (=-1.0) must be finite and >= 0."),
        ({"rtol": float("inf")}, "`rtol` (=inf) must be finite and >= 0."),
        (
            {"precision": "int4"},
            "`precision` (='int4') must be 'float32', 'float64', 'float16' or 'int8'.",
        ),
    ],
)
def test_a_tolerance_that_cannot_be_used_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        Tolerance(**fields)  # type: ignore[arg-type]
    assert str(raised.value) == message


def test_a_model_has_the_least_precision_of_its_weights() -> None:
    assert model_precision(nn.GRU(2, 3)) == "float32"
    assert model_precision(nn.GRU(2, 3).double()) == "float64"
    assert model_precision(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3).double())) == "float32"
    assert model_precision(nn.Identity()) == "float32"
    counting = nn.Linear(2, 3).double()
    counting.register_parameter(
        "calls", nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
    )
    assert model_precision(counting) == "float64"
