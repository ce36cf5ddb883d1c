"""Tensors in JSON and in binary form: back and forth, and against anything that a client may send."""

import json
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from deploy_rnn.errors import InputError, TooLargeError, UnsupportedError
from deploy_rnn.serving.protocol.tensors import DATATYPES, check_shape, dtype_of, from_values
from deploy_rnn.serving.rest import messages
from deploy_rnn.serving.rest.binary import HEADER_LENGTH
from deploy_rnn.serving.scheduling.request import Response
from deploy_rnn.serving.settings import Settings

# The speed of the machine decides nothing.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TEXT = st.text('abxy0é"\\', max_size=5)
ARRAYS = st.sampled_from(sorted(DATATYPES.values())).flatmap(
    lambda dtype: npst.arrays(
        dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    )
)
FINITE = st.sampled_from(sorted(DATATYPES.values())).flatmap(
    lambda dtype: npst.arrays(
        dtype, npst.array_shapes(max_dims=3, max_side=4), elements={"allow_nan": False, "allow_infinity": False}
        if dtype.startswith("float") else {},
    )
)  # fmt: skip
NAMES = {numpy: name for name, numpy in DATATYPES.items()}


def head(array: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": NAMES[array.dtype.name], "shape": list(array.shape), **more}


def read(fields: Any, *pieces: bytes, length: int | None = None) -> messages.InferRequest:
    text = json.dumps(fields).encode()
    return messages.read(
        text + b"".join(pieces),
        str(len(text) if length is None else length),
        Settings(max_bytes=10_000),
    )


@patient
@given(ARRAYS)
def test_binary_there_and_back(array: np.ndarray) -> None:
    raw = array.tobytes()
    infer_request = read(
        {
            "inputs": [head(array, parameters={"binary_data_size": len(raw)})],
            "parameters": {"binary_data_output": True},
        },
        raw,
    )
    array_read = infer_request.request.inputs["x"]
    assert (array_read.dtype, array_read.shape, array_read.tobytes(), array_read.flags.aligned) == (
        array.dtype,
        array.shape,
        raw,
        True,
    )
    body, headers = messages.write(
        infer_request, "m", Response({"x": array_read}, 0, 0, 1), Settings()
    )
    length = int(headers[HEADER_LENGTH])
    output = json.loads(body[:length])["outputs"][0]
    assert (output["shape"], output["datatype"]) == (list(array.shape), NAMES[array.dtype.name])
    assert body[length:] == raw


@patient
@given(FINITE, st.booleans())
def test_json_there_and_back(array: np.ndarray, flat: bool) -> None:
    infer_request = read(
        {"inputs": [head(array, data=array.ravel().tolist() if flat else array.tolist())]}
    )
    array_read = infer_request.request.inputs["x"]
    assert array_read.dtype == array.dtype
    np.testing.assert_array_equal(array_read, array)
    body, _ = messages.write(infer_request, "m", Response({"x": array_read}, 0, 0, 1), Settings())
    np.testing.assert_array_equal(
        np.array(json.loads(body)["outputs"][0]["data"], array.dtype).reshape(array.shape), array
    )


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
SIZES = st.integers(-3, 12) | st.integers() | ANYTHING
INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y"]) | ANYTHING,
        "datatype": st.sampled_from([*DATATYPES, "BYTES"]) | ANYTHING,
        "shape": st.lists(SIZES, max_size=4) | ANYTHING,
        "data": st.lists(st.integers() | st.floats(), max_size=4) | ANYTHING,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": SIZES}) | ANYTHING,
    },
)
BODY = st.fixed_dictionaries(
    {},
    optional={
        "id": ANYTHING,
        "inputs": st.lists(INPUT, max_size=3) | ANYTHING,
        "outputs": st.lists(st.fixed_dictionaries({"name": ANYTHING}), max_size=2) | ANYTHING,
        "parameters": st.dictionaries(
            st.sampled_from(["sequence_id", "sequence_start", "sequence_end", "timeout"]), ANYTHING
        ),
    },
)


@settings(patient, max_examples=300)
@given(BODY, st.binary(max_size=40), st.none() | st.integers(-5, 200))
def test_any_body_is_read_or_refused(fields: Any, rest: bytes, length: int | None) -> None:
    try:
        infer_request = read(fields, rest, length=length)
    except (InputError, TooLargeError, UnsupportedError):
        return
    assert all(array.nbytes <= 10_000 for array in infer_request.request.inputs.values())


@patient
@given(st.binary(max_size=60), TEXT)
def test_bytes_that_are_not_a_request(body: bytes, length: str) -> None:
    with pytest.raises(InputError):
        messages.read(body, length, Settings())


@pytest.mark.parametrize("cut", [1, 7])
def test_a_tensor_between_words_is_aligned(cut: int) -> None:
    raw = np.arange(3.0).tobytes()
    fields = {
        "inputs": [
            {
                "name": "a",
                "datatype": "UINT8",
                "shape": [cut],
                "parameters": {"binary_data_size": cut},
            },
            {
                "name": "x",
                "datatype": "FP64",
                "shape": [3],
                "parameters": {"binary_data_size": len(raw)},
            },
        ]
    }
    array = read(fields, bytes(cut), raw).request.inputs["x"]
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2]


def test_a_bool_is_0_or_1() -> None:
    with pytest.raises(InputError, match="`x` is BOOL and contains a byte other than 0 and 1"):
        read({"inputs": [head(np.zeros(2, bool), parameters={"binary_data_size": 2})]}, b"\x00\x02")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([0, 2**63], ""), ([2**64 - 1, 1], ""),
        ([-1, 2**63], "out of range for UINT64, 0 to"), ([0, 2**64], "out of range for UINT64, 0 to"),
        ([0.5, 2**63], "that are not UINT64, such as 0.5."), (["a", 2**63], "that are not UINT64, such as \"a\"."),
        ([2**63, None], "that are not UINT64, such as null."),
    ],
)  # fmt: skip
def test_the_upper_half_of_uint64(values: list[Any], error: str) -> None:
    """numpy makes floats of integers of which some need int64 and others uint64."""
    if not error:
        assert from_values("x", dtype_of("x", "UINT64"), (2,), values).tolist() == values
    else:
        with pytest.raises(InputError, match=f"`x` contains values {error}"):
            from_values("x", dtype_of("x", "UINT64"), (2,), values)


def test_a_text_among_numbers_takes_no_more_memory() -> None:
    """numpy would make every number as wide as the text: 800 MB."""
    values = ["x" * 50_000, *[1] * 4000]
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match='`x` contains values that are not FP32, such as "xxx'):
            from_values("x", dtype_of("x", "FP32"), (4001,), values)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([[1, 2], 3], "lists and values next to each other"),
        ([3, [1, 2]], "lists and values next to each other"),
        ([[1], [2, 3]], "lists of different lengths"),
        (
            [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],
            "nested too deeply",
        ),
        ({"a": [1]}, "must be a list of values"),
        ([{}, {}], "that are not FP32, such as {}"),
    ],
)
def test_data_that_is_not_a_tensor(data: Any, error: str) -> None:
    with pytest.raises(InputError, match=error):
        from_values("x", dtype_of("x", "FP32"), (2,), data)


@pytest.mark.parametrize("shape", [[2**62, 0], [0, 2**40, 2**40]])
def test_an_empty_tensor_of_huge_sizes(shape: list[int]) -> None:
    with pytest.raises(TooLargeError, match="more than 1000 bytes"):
        check_shape("x", shape, dtype_of("x", "FP32"), 1000)


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT64", 2**63), ("UINT64", -1), ("INT8", 2**200), ("BOOL", 1)]
)
def test_a_value_that_the_datatype_cannot_represent(datatype: str, value: int) -> None:
    with pytest.raises(
        InputError, match=f"`x` contains values (out of range for|that are not) {datatype}"
    ):
        from_values("x", dtype_of("x", datatype), (1,), [value])


@pytest.mark.parametrize(("datatype", "value"), [("INT64", 2.5), ("INT32", True), ("BOOL", 3)])
def test_a_wrong_value_is_shown_as_it_was_sent(datatype: str, value: object) -> None:
    message = f"`x` contains values that are not {datatype}, such as {json.dumps(value)}."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        from_values("x", dtype_of("x", datatype), (1,), [value])
