"""Bodies of HTTP: an inference request is read, and its answer is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from .binary import BinaryData, join, parse_json, split, too_much_json

JSON_BYTES_OF_A_VALUE = 16
"""What a number in an answer counts, before it is written: one of FP64 takes up to 24 bytes, an integer often 2."""


class Input(NamedTuple):
    """What the JSON of a request has of an input.

    Attributes:
        values: its elements; None if they are bytes after the JSON.
        size: how many bytes, as the client gives it.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    values: np.ndarray | None
    size: object


@dataclass(frozen=True)
class Description:
    """What the JSON of a request says; what may be lacking are the bytes of its inputs.

    Attributes:
        infer_request: the request without its inputs.
    """

    inputs: Sequence[Input]
    infer_request: InferRequest

    @property
    def is_all_binary(self) -> bool:
        """Whether all elements are bytes after the JSON."""
        return all(tensor.values is None for tensor in self.inputs)

    def complete(self, binary: memoryview) -> InferRequest:
        """The request with all its inputs.

        Args:
            binary: the bytes after the JSON.

        Raises:
            InputError: they are not those that it says.
        """
        binary_data = BinaryData(binary)
        arrays: dict[str, np.ndarray] = {}
        for name, dtype, shape, values, size in self.inputs:
            if values is None:
                values = from_bytes(name, dtype, shape, binary_data.take(name, size))
            arrays[name] = values
        binary_data.finish()
        return self.infer_request.with_inputs(arrays)


def read(body: bytes, header_length: str | None, settings: Settings) -> InferRequest:
    """
    Args:
        header_length: the header `Inference-Header-Content-Length`; None if the body is all JSON.

    Raises:
        InputError: the body is not an inference request.
        TooLargeError: a tensor, or the JSON, is too large.
        UnsupportedError: the request needs an extension that is not implemented.
    """
    text, binary = split(body, header_length)
    return describe(text, settings).complete(binary)


def describe(text: bytes, settings: Settings) -> Description:
    """Read the JSON of a request.

    Raises:
        InputError, TooLargeError, UnsupportedError: as for `read`.
    """
    fields = parse_json(text, settings.max_json_bytes)
    inputs = [_input(input_fields, settings) for input_fields in _objects(fields, "inputs")]
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
    names = [tensor.name for tensor in inputs]
    request = oip.request(names, output_names, parameters, settings.request_seconds)
    infer_request = InferRequest(
        id=_string(fields, "id", default=""),
        request=request,
        binary=parameters.get("binary_data_output") is True,
        binary_outputs=binary_outputs,
    )
    return Description(inputs, infer_request)


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


def _input(fields: Mapping[str, Any], settings: Settings) -> Input:
    name = _string(fields, "name")
    parameters = _parameters(fields)
    oip.refuse_parameters(name, parameters)
    dtype = dtype_of(name, fields.get("datatype"))
    shape = check_shape(name, fields.get("shape"), dtype, settings.max_bytes)
    if "binary_data_size" in parameters:
        if "data" in fields:
            raise InputError(
                f"`{name}` has both `data` and binary_data_size; use only one of them."
            )
        return Input(name, dtype, shape, None, parameters["binary_data_size"])
    values = from_values(name, dtype, shape, fields.get("data"))
    refuse_infinity(name, values)
    return Input(name, dtype, shape, values, 0)


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
    oip.check_text(key, value)
    return value
