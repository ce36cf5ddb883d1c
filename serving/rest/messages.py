"""An inference request as HTTP has it becomes a `Request`, and a `Response` becomes a body."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy_rnn.errors import InputError

from ..protocol import oip
from ..protocol.tensors import check_shape, datatype, dtype_of, from_bytes, from_values
from ..repository import VERSION
from ..scheduling.request import Request, Response
from ..settings import Settings
from .binary import Pieces, join, split


@dataclass(frozen=True)
class InferRequest:
    """
    Attributes:
        id: the client's own, to be sent back; "" for none.
        request: for the model.
        binary: whether outputs are sent as binary data.
        binary_outputs: output -> whether that one is, where the client said so.
    """

    id: str
    request: Request
    binary: bool = False
    binary_outputs: Mapping[str, bool] = field(default_factory=dict)


def read(body: bytes, header_length: str | None, settings: Settings) -> InferRequest:
    """
    Raises:
        InputError: a body that is no inference request.
        TooLargeError, UnsupportedError: a tensor that is too large, or an extension that is not done.
    """
    fields, rest = split(body, header_length)
    pieces = Pieces(rest)
    inputs = [_input(each, pieces, settings) for each in _objects(fields, "inputs")]
    pieces.finish()
    if not inputs:
        raise InputError("the request has no `inputs`.")
    outputs = [(_text(each, "name"), _parameters(each)) for each in _objects(fields, "outputs")]
    for name, parameters in outputs:
        oip.refuse_parameters(name, parameters)
    parameters = _parameters(fields)
    return InferRequest(
        id=_text(fields, "id", ""),
        request=oip.request(inputs, [name for name, _ in outputs], parameters, settings.request_seconds),
        binary=parameters.get("binary_data_output") is True,
        binary_outputs={name: given["binary_data"] is True for name, given in outputs if "binary_data" in given},
    )


def write(asked: InferRequest, model_name: str, response: Response) -> tuple[bytes, dict[str, str]]:
    """The body and the headers that describe it.

    Raises:
        InputError: an output that JSON cannot hold.
    """
    outputs, pieces = [], []
    for name, array in response.outputs.items():
        fields = {"name": name, "datatype": datatype(array.dtype.name), "shape": list(array.shape)}
        if asked.binary_outputs.get(name, asked.binary):
            pieces.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            outputs.append(fields | {"parameters": {"binary_data_size": len(pieces[-1])}})
        else:
            outputs.append(fields | {"data": _values(name, array)})
    named = {"id": asked.id} if asked.id else {}
    return join({"model_name": model_name, "model_version": VERSION, **named, "outputs": outputs}, pieces)


def _values(name: str, array: np.ndarray) -> Any:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"output `{name}` has NaN or an infinity, which JSON has not; ask for it as binary data.")
    return array.ravel().tolist()


def _input(fields: Mapping[str, Any], pieces: Pieces, settings: Settings) -> tuple[str, np.ndarray]:
    name, parameters = _text(fields, "name"), _parameters(fields)
    oip.refuse_parameters(name, parameters)
    dtype = dtype_of(name, fields.get("datatype"))
    shape = check_shape(name, fields.get("shape"), dtype, settings.max_bytes)
    if "binary_data_size" not in parameters:
        return name, from_values(name, dtype, shape, fields.get("data"))
    if "data" in fields:
        raise InputError(f"`{name}` has both `data` and binary_data_size; give one.")
    return name, from_bytes(name, dtype, shape, pieces.take(name, parameters["binary_data_size"]))


def _objects(fields: Mapping[str, Any], key: str) -> Sequence[dict[str, Any]]:
    found = fields.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise InputError(f"`{key}` must be a list of objects.")
    return found


def _parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    found = fields.get("parameters", {})
    if not isinstance(found, dict):
        raise InputError("`parameters` must be an object.")
    return found


def _text(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    found = fields.get(key, default)
    if not isinstance(found, str):
        raise InputError(f"`{key}` is a {type(found).__name__}; give a text.")
    return found
