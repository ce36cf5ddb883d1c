"""Messages of gRPC: a ModelInferRequest is read, and a ModelInferResponse is written."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from deploy_rnn.errors import InputError

from ..protocol import oip
from ..protocol.inference import InferRequest
from ..protocol.tensors import check_shape, datatype_of, dtype_of, from_bytes, from_values, to_bytes
from ..scheduling.request import Response
from ..settings import Settings
from .messages import CLASSES, parse
from .wire import MAX_FIELDS, check_size

CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
"""Datatype -> the field of InferTensorContents for its values. FP16 has none, and comes as raw bytes."""


def parse_request(data: bytes, settings: Settings) -> Any:
    """The ModelInferRequest in `data`.

    Raises:
        InputError: it is none.
        TooLargeError: it has too many fields, or too much beside `raw_input_contents`.
    """
    # Each field takes two bytes at least.
    if len(data) > min(2 * MAX_FIELDS, settings.max_json_bytes):
        check_size(data, settings.max_json_bytes)
    return parse("ModelInferRequest", data)


def read(message: Any, seconds: float, settings: Settings) -> InferRequest:
    """
    Args:
        message: a ModelInferRequest.
        seconds: how long it may take if it has no shorter `timeout`.

    Raises:
        InputError: the message is not an inference request that the protocol allows.
        TooLargeError: a tensor is too large.
        UnsupportedError: the request needs an extension that is not implemented.
    """
    # Each look at a field makes an object.
    tensors = list(message.inputs)
    if not tensors:
        raise InputError("the request has no `inputs`.")
    raw_contents: list[bytes | None] = list(message.raw_input_contents)
    # All inputs are raw, or all have typed contents.
    if not raw_contents:
        raw_contents = [None] * len(tensors)
    if len(raw_contents) != len(tensors):
        raise InputError(
            f"the request has {len(tensors)} inputs and {len(raw_contents)} `raw_input_contents`; there must be one "
            "for each input."
        )
    names = []
    inputs = {}
    for tensor, raw in zip(tensors, raw_contents, strict=True):
        name = tensor.name
        names.append(name)
        inputs[name] = _input(name, tensor, raw, settings)

    output_names = []
    for output in message.outputs:
        name = output.name
        oip.refuse_parameters(name, _parameters(output.parameters))
        output_names.append(name)
    parameters = _parameters(message.parameters)
    request = oip.request(names, output_names, parameters, seconds)
    return InferRequest(message.id, replace(request, inputs=inputs))


def write(infer_request: InferRequest, model_name: str, response: Response) -> Any:
    """The ModelInferResponse; its tensors are raw bytes, as Triton's are."""
    message = CLASSES["ModelInferResponse"](
        model_name=model_name,
        model_version=oip.VERSION,
        id=infer_request.id,
    )
    for name, array in response.outputs.items():
        message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        message.raw_output_contents.append(to_bytes(array))
    return message


def _input(name: str, tensor: Any, raw: bytes | None, settings: Settings) -> np.ndarray:
    oip.refuse_parameters(name, _parameters(tensor.parameters))
    dtype = dtype_of(name, tensor.datatype)
    shape = check_shape(name, list(tensor.shape), dtype, settings.max_bytes)
    if raw is None:
        return from_values(name, dtype, shape, _contents(tensor))
    if tensor.HasField("contents"):
        raise InputError(
            f"`{name}` has `contents`, but there are `raw_input_contents`; use only one of them."
        )
    return from_bytes(name, dtype, shape, raw)


def _contents(tensor: Any) -> list[Any]:
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise InputError(
            f"`{tensor.name}` has datatype {tensor.datatype}, which must be sent in `raw_input_contents`."
        )
    return list(getattr(tensor.contents, field))


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A map of InferParameter as Python values; those without a value are left out."""
    values: dict[str, Any] = {}
    if not parameters:
        return values
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            values[name] = getattr(parameter, choice)
    return values
