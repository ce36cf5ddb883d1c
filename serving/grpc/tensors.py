"""Messages of gRPC: a ModelInferRequest is read, and a ModelInferResponse is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np

from deploy_rnn.errors import InputError

from ..protocol import oip
from ..protocol.inference import InferRequest
from ..protocol.tensors import check_shape, datatype_of, dtype_of, from_bytes, from_values, to_bytes
from ..scheduling.request import Request, Response
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

MAX_KNOWN = 1024
"""Messages that are remembered, without their ids and bytes."""

MAX_KNOWN_BYTES = 1024
"""Of such a message."""


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


class Reader:
    """Reads ModelInferRequests.

    Most of them differ from an earlier one in their bytes alone: what they say besides is checked once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # By the message without its id and its bytes. Used in any thread.
        self._descriptions: dict[bytes, Description] = {}

    def read(self, message: Any, seconds: float) -> InferRequest:
        """
        Args:
            message: a ModelInferRequest; its id and its raw contents are taken out of it.
            seconds: how long it may take if it has no shorter `timeout`.

        Raises:
            InputError: the message is not an inference request that the protocol allows.
            TooLargeError: a tensor is too large.
            UnsupportedError: the request needs an extension that is not implemented.
        """
        request_id = message.id
        contents: list[bytes] = list(message.raw_input_contents)
        if not contents:
            description = _describe(message, self._settings, raw=False)
            return description.complete(request_id, (), seconds)
        count = len(message.inputs)
        if len(contents) != count > 0:
            raise InputError(
                f"the request has {count} inputs and {len(contents)} `raw_input_contents`; there must be one for each "
                "input."
            )
        message.ClearField("id")
        message.ClearField("raw_input_contents")
        text = message.SerializeToString()
        known = self._descriptions.get(text)
        if known is None:
            known = _describe(message, self._settings, raw=True)
            if len(text) <= MAX_KNOWN_BYTES:
                self._remember(text, known)
        return known.complete(request_id, contents, seconds)

    def _remember(self, text: bytes, description: "Description") -> None:
        if len(self._descriptions) >= MAX_KNOWN:
            self._descriptions.clear()
        self._descriptions[text] = description


class Input(NamedTuple):
    """What a message says of an input.

    Attributes:
        values: its elements; None if they are raw.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    values: np.ndarray | None


@dataclass(frozen=True)
class Description:
    """What a message says, besides its id and the bytes of its inputs.

    Attributes:
        request: without inputs; its timeout is the client's, and infinite if it has none.
    """

    inputs: Sequence[Input]
    request: Request

    def complete(
        self, request_id: str, raw_contents: Sequence[bytes], seconds: float
    ) -> InferRequest:
        """The request with all that it needs.

        Args:
            raw_contents: one for each input, or none where their elements are typed contents.
            seconds: how long it may take if it has no shorter `timeout`.

        Raises:
            InputError: the bytes are not those that it says.
        """
        arrays: dict[str, np.ndarray] = {}
        for number, (name, dtype, shape, values) in enumerate(self.inputs):
            if values is None:
                values = from_bytes(name, dtype, shape, raw_contents[number])
            arrays[name] = values
        timeout = self.request.timeout
        timeout = seconds if timeout is None else min(seconds, timeout)
        return InferRequest(request_id, self.request.with_inputs(arrays, timeout))


def _describe(message: Any, settings: Settings, *, raw: bool) -> Description:
    """Args:
    raw: whether the elements of all inputs are raw; otherwise those of all are typed contents.
    """
    # Each look at a field makes an object.
    tensors = list(message.inputs)
    if not tensors:
        raise InputError("the request has no `inputs`.")
    inputs = [_input(tensor.name, tensor, settings, raw=raw) for tensor in tensors]
    names = [tensor.name for tensor in inputs]
    output_names = []
    for output in message.outputs:
        name = output.name
        oip.refuse_parameters(name, _parameters(output.parameters))
        output_names.append(name)
    parameters = _parameters(message.parameters)
    return Description(inputs, oip.request(names, output_names, parameters, inf))


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


def _input(name: str, tensor: Any, settings: Settings, *, raw: bool) -> Input:
    oip.refuse_parameters(name, _parameters(tensor.parameters))
    dtype = dtype_of(name, tensor.datatype)
    shape = check_shape(name, list(tensor.shape), dtype, settings.max_bytes)
    if not raw:
        return Input(name, dtype, shape, from_values(name, dtype, shape, _contents(tensor)))
    if tensor.HasField("contents"):
        raise InputError(
            f"`{name}` has `contents`, but there are `raw_input_contents`; use only one of them."
        )
    return Input(name, dtype, shape, None)


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
