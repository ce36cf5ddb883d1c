"""What `write` makes of outputs: numbers in JSON that are as short as can be, and stand for the same bits."""

import json
from typing import Any

import numpy as np
import pytest

from deploy_rnn.serving.protocol.inference import InferRequest
from deploy_rnn.serving.rest.messages import write
from deploy_rnn.serving.scheduling.request import Request, Response
from deploy_rnn.serving.settings import Settings


def written_values(array: np.ndarray) -> list[Any]:
    request = InferRequest("", Request({}))
    body, _ = write(request, "model", Response({"y": array}, 0.0, 0.0, 1), Settings())
    output = json.loads(body)["outputs"][0]
    assert output["shape"] == list(array.shape)
    values: list[Any] = output["data"]
    return values


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
    values = written_values(array)
    unsigned = f"uint{8 * array.itemsize}"
    read = np.array(values, dtype)
    np.testing.assert_array_equal(read.view(unsigned), array.ravel().view(unsigned))
    for value, element in zip(values, array.ravel(), strict=True):
        assert len(repr(value)) <= len(repr(float(str(element))))


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1, 2]]), np.array([2**63 - 1, -(2**63)]), np.array([2**64 - 1], np.uint64), np.array([True]),
        np.array([0.1, 1 / 3]), np.zeros((0, 3), np.float32), np.array(0.1), np.arange(6.0).reshape(2, 3).T,
    ],
)  # fmt: skip
def test_other_dtypes_and_shapes_are_as_they_are(array: np.ndarray) -> None:
    assert written_values(array) == array.ravel().tolist()
