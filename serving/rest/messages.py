"""Bodies of HTTP: an inference request is read, and its answer is written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy_rnn.errors import InputError, TooLargeError

from ..protocol import oip
from ..protocol.inference import InferRequest
from ..protocol.tensors import (
    check_shape,
    datatype_of,
    dtype_of,
    from_bytes,
    from_values,
    refuse_infinity,
    shown,
    to_bytes,
)
from ..scheduling.request import Response
from ..settings import Settings
from .binary import BinaryData, join, split, too_much_json

JSON_BYTES_OF_A_VALUE = 16
"""What a number in an answer counts, before it is written: one of FP64 takes up to 24 bytes, an integer often 2."""


def read(body: bytes, header_length: str | None, settings: Settings) -> InferRequest:
    """
    Args:
        header_length: the header `Inference-Header-Content-Length`; None if the body is all JSON.

    Raises:
        InputError: the body is not an inference request.
        TooLargeError: a tensor, or the JSON, is too large.
        UnsupportedError: the request needs an extension that is not implemented.
    """
    fields, remaining_bytes = split(body, header_length, settings.max_json_bytes)
    binary_data = BinaryData(remaining_bytes)
    inputs = []
    for input_fields in _objects(fields, "inputs"):
        inputs.append(_input(input_fields, binary_data, settings))
    binary_data.finish()
    if not inputs:
        raise InputError("the request has no `inputs`.")

    output_names = []
    binary_outputs = {}
    for output_fields in _objects(fields, "outputs"):
        name = _string(output_fields, "name")
        output_parameters = _parameters(output_fields)
        oip.refuse_parameters(name, output_parameters)
        output_names.append(name)
        # An output without its own choice follows `binary_data_output` of the request.
        if "binary_data" in output_parameters:
            binary_outputs[name] = output_parameters["binary_data"] is True

    parameters = _parameters(fields)
    request = oip.request(inputs, output_names, parameters, settings.request_seconds)
    return InferRequest(
        id=_string(fields, "id", default=""),
        request=request,
        binary=parameters.get("binary_data_output") is True,
        binary_outputs=binary_outputs,
    )


def write(
    infer_request: InferRequest, model_name: str, response: Response, settings: Settings
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and the headers that describe it.

    Raises:
        InputError: JSON cannot represent an output.
        TooLargeError: the outputs that are to be JSON are too large for it.
    """
    _check_json_size(infer_request, response, settings.max_json_bytes)
    outputs = []
    binary_data = []
    for name, array in response.outputs.items():
        output: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(array),
            "shape": array.shape,
        }
        if infer_request.is_binary(name):
            binary_data.append(to_bytes(array))
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            output["data"] = for_json(name, array, "request it as binary data.").ravel()
        outputs.append(output)

    fields: dict[str, Any] = {"model_name": model_name, "model_version": oip.VERSION}
    if infer_request.id:
        fields["id"] = infer_request.id
    fields["outputs"] = outputs
    return join(fields, binary_data)


def _check_json_size(infer_request: InferRequest, response: Response, max_bytes: int) -> None:
    values = 0
    for name, array in response.outputs.items():
        if not infer_request.is_binary(name):
            values += array.size
    if values * JSON_BYTES_OF_A_VALUE > max_bytes:
        raise TooLargeError(too_much_json(f"an answer of {values} numbers takes more", max_bytes))


def for_json(name: str, array: np.ndarray, advice: str) -> np.ndarray:
    """An output whose numbers `orjson` writes as the shortest decimals of the same bits.

    Args:
        advice: what to do if JSON cannot represent it.

    Raises:
        InputError: it contains NaN or infinity.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"output `{name}` contains NaN or infinity, which JSON cannot represent; {advice}"
        )
    if array.dtype == np.float16:
        # `orjson` would write the decimals that FP32 needs.
        decimals = np.array([float(str(value)) for value in array.flat])
        return decimals.reshape(array.shape)
    return array


def _input(
    fields: Mapping[str, Any], binary_data: BinaryData, settings: Settings
) -> tuple[str, np.ndarray]:
    name = _string(fields, "name")
    parameters = _parameters(fields)
    oip.refuse_parameters(name, parameters)
    dtype = dtype_of(name, fields.get("datatype"))
    shape = check_shape(name, fields.get("shape"), dtype, settings.max_bytes)
    if "binary_data_size" not in parameters:
        array = from_values(name, dtype, shape, fields.get("data"))
        refuse_infinity(name, array)
    elif "data" in fields:
        raise InputError(f"`{name}` has both `data` and binary_data_size; use only one of them.")
    else:
        raw = binary_data.take(name, parameters["binary_data_size"])
        array = from_bytes(name, dtype, shape, raw)
    return name, array


def _objects(fields: Mapping[str, Any], key: str) -> Sequence[dict[str, Any]]:
    value = fields.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"`{key}` must be a list of objects.")
    return value


def _parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    value = fields.get("parameters", {})
    if not isinstance(value, dict):
        raise InputError("`parameters` must be an object.")
    return value


def _string(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = fields.get(key, default)
    if not isinstance(value, str):
        raise InputError(f"`{key}` must be a string, got {shown(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"`{key}` (={value[:40]!a}) must be text; it contains half of a surrogate pair."
        ) from None
    return value
