"""An inference request as gRPC has it becomes a `Request`, and a `Response` becomes a message."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy_rnn.errors import InputError

from ..protocol import oip
from ..protocol.tensors import check_shape, datatype, dtype_of, from_bytes, from_values
from ..repository import VERSION
from ..scheduling.request import Request, Response
from ..settings import Settings
from .messages import CLASSES

CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
"""Datatype -> the field of InferTensorContents that has its values; FP16 has none, and comes as raw bytes."""


def read(message: Any, seconds: float, settings: Settings) -> Request:
    """
    Args:
        message: a ModelInferRequest.
        seconds: how long the client waits.

    Raises:
        InputError: no inference request that the protocol allows.
        TooLargeError, UnsupportedError: a tensor that is too large, or an extension that is not done.
    """
    if not message.inputs:
        raise InputError("the request has no `inputs`.")
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise InputError(f"there are {len(message.inputs)} inputs and {len(raw)} `raw_input_contents`; give one each.")
    pieces = zip(message.inputs, raw or [None] * len(message.inputs), strict=True)
    inputs = [_input(each, piece, settings) for each, piece in pieces]
    for output in message.outputs:
        oip.refuse_parameters(output.name, _parameters(output.parameters))
    outputs = [output.name for output in message.outputs]
    return oip.request(inputs, outputs, _parameters(message.parameters), min(seconds, settings.request_seconds))


def write(message: Any, response: Response) -> Any:
    """The ModelInferResponse to `message`; its tensors are raw bytes, as Triton's are."""
    answer = CLASSES["ModelInferResponse"](model_name=message.model_name, model_version=VERSION, id=message.id)
    for name, array in response.outputs.items():
        answer.outputs.add(name=name, datatype=datatype(array.dtype.name), shape=array.shape)
        answer.raw_output_contents.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return answer


def _input(tensor: Any, raw: bytes | None, settings: Settings) -> tuple[str, np.ndarray]:
    oip.refuse_parameters(tensor.name, _parameters(tensor.parameters))
    dtype = dtype_of(tensor.name, tensor.datatype)
    shape = check_shape(tensor.name, tensor.shape, dtype, settings.max_bytes)
    if raw is None:
        return tensor.name, from_values(tensor.name, dtype, shape, _contents(tensor))
    if tensor.HasField("contents"):
        raise InputError(f"`{tensor.name}` has `contents`, but there are `raw_input_contents`; give one.")
    return tensor.name, from_bytes(tensor.name, dtype, shape, raw)


def _contents(tensor: Any) -> list[Any]:
    if tensor.datatype not in CONTENTS:
        raise InputError(f"`{tensor.name}` is {tensor.datatype}, which goes into `raw_input_contents` only.")
    return list(getattr(tensor.contents, CONTENTS[tensor.datatype]))


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in given.items()}
    return {name: getattr(given[name], kind) for name, kind in kinds.items() if kind}
