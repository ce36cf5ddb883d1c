"""`shortest_values`: decimals that are as short as can be, and stand for the same bits."""

import json

import numpy as np
import pytest

from deploy_rnn.serving.rest.decimals import shortest_values


def random_bits(dtype: str, count: int) -> np.ndarray:
    unsigned = np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")
    limit = np.iinfo(unsigned).max
    bits = np.random.default_rng(0).integers(limit, size=count, dtype=unsigned, endpoint=True)
    values = bits.view(dtype)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["bits", "scores", "decimals", "few"])
def test_the_shortest_decimal_of_the_same_bits(dtype: str, kind: str) -> None:
    arrays = {
        "bits": random_bits(dtype, 3000),
        "scores": np.random.default_rng(1).standard_normal((30, 50)).astype(dtype),
        "decimals": (np.arange(-500, 500) / 100).astype(dtype),
        "few": np.array([0.1, -0.0, 1e-5, 65504, 1000], dtype),
    }
    array = arrays[kind]
    values = json.loads(json.dumps(shortest_values(array)))
    unsigned = f"uint{8 * array.itemsize}"
    read = np.array(values, dtype)
    np.testing.assert_array_equal(read.view(unsigned), array.ravel().view(unsigned))
    for value, element in zip(values, array.ravel(), strict=True):
        assert len(repr(value)) <= len(repr(float(str(element))))


def test_a_tenth() -> None:
    assert json.dumps(shortest_values(np.full(50, 0.1, np.float32))[-1]) == "0.1"


def test_other_dtypes_are_as_they_are() -> None:
    assert shortest_values(np.array([[1, 2]])) == [1, 2]
    assert shortest_values(np.array([0.1, 1 / 3])) == [0.1, 1 / 3]
    assert shortest_values(np.array([True])) == [True]
    assert shortest_values(np.zeros((0, 3), np.float32)) == []
