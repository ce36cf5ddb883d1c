"""Version 1 of KServe's protocol, which is that of TensorFlow Serving: rows in, one prediction for each row out.

Each row is a request of its own, so that rows of unlike length may come together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy_rnn.errors import InputError, TooLargeError
from deploy_rnn.tensor_spec import TensorSpec

from ..protocol import oip
from ..protocol.inference import numbered_errors
from ..protocol.tensors import datatype, dtype_of, from_row, shown
from ..scheduling.request import Request, Response
from ..scheduling.served_model import ServedModel
from ..settings import Settings
from .binary import join, parse_json, too_much_json
from .messages import JSON_BYTES_OF_A_VALUE, for_json

BINARY_ADVICE = "request it as binary data of the protocol's version 2."

MAX_INSTANCES = 4096
"""Reading so many of a few numbers each takes some tenths of a second."""


def read(body: bytes, model: ServedModel, settings: Settings) -> list[Request]:
    """The requests of a body `{"instances": [...]}`.

    An instance is an object, input -> value; or the value alone, if the model needs one input only. A value is a number
    or nested lists, in the shape of an input without the axis of the rows.

    Raises:
        InputError: the body is not of this kind; one of its instances is not one of this model.
        TooLargeError: it is too large.
    """
    fields = parse_json(body, settings.max_json_bytes)
    if "instances" not in fields:
        raise InputError('the request has no `instances`; must be {"instances": [...]}.')
    instances = fields["instances"]
    if not isinstance(instances, list) or not instances:
        raise InputError(
            f"`instances` (={shown(instances)}) must be a list of at least one instance."
        )
    if len(instances) > MAX_INSTANCES:
        raise TooLargeError(
            f"`instances` has {len(instances)}; send at most {MAX_INSTANCES} at once."
        )
    specs = {spec.name: spec for spec in model.inputs}
    requests = []
    for number, instance in enumerate(instances):
        with numbered_errors(number):
            inputs = _inputs(instance, specs, model)
        requests.append(Request(inputs, timeout=settings.request_seconds))
    return requests


def _inputs(
    instance: object, specs: Mapping[str, TensorSpec], model: ServedModel
) -> dict[str, np.ndarray]:
    if not isinstance(instance, dict):
        needed = [name for name in specs if name not in model.optional]
        if len(needed) != 1:
            names = ", ".join(specs)
            raise InputError(f"it is {shown(instance)}; must be an object with the inputs {names}.")
        instance = {needed[0]: instance}
    inputs = {}
    for name, value in instance.items():
        if name not in specs:
            raise InputError(f"there is no input `{name[:80]}`; the inputs are {', '.join(specs)}.")
        inputs[name] = _tensor(specs[name], value, model)
    return inputs


def _tensor(spec: TensorSpec, value: object, model: ServedModel) -> np.ndarray:
    """The tensor of one row, with the axis of the rows if the model has it."""
    array = from_row(spec.name, dtype_of(spec.name, datatype(spec.dtype)), value)
    if not model.max_batch:
        array = array[0]
    elif len(spec.shape) == 1 and array.shape == (1, 1):
        array = array[0]  # lengths, sent as [5] in place of 5
    if not oip.fits(array.shape, _with_one_row(spec, model)):
        first_axis = 1 if model.max_batch else 0
        sizes = ", ".join(map(str, spec.shape[first_axis:]))
        may_vary = any(isinstance(size, str) for size in spec.shape[first_axis:])
        no_zero = ", with no size 0" if may_vary else ""
        raise InputError(
            f"`{spec.name}` has shape {list(array.shape[first_axis:])}; must be [{sizes}]{no_zero}."
        )
    return array


def _with_one_row(spec: TensorSpec, model: ServedModel) -> Sequence[int | str]:
    return (1, *spec.shape[1:]) if model.max_batch else spec.shape


def write(
    responses: Sequence[Response], model: ServedModel, settings: Settings
) -> tuple[bytes, dict[str, str]]:
    """The body `{"predictions": [...]}`, and its headers: of each row the output, or an object if there are several.

    Raises:
        InputError: JSON cannot represent an output.
        TooLargeError: the outputs are too large for JSON.
    """
    values = sum(array.size for response in responses for array in response.outputs.values())
    if values * JSON_BYTES_OF_A_VALUE > settings.max_json_bytes:
        raise TooLargeError(
            too_much_json(f"an answer of {values} numbers takes more", settings.max_json_bytes)
        )
    predictions = [_prediction(response.outputs, model) for response in responses]
    return join({"predictions": predictions}, [])


def _prediction(outputs: Mapping[str, np.ndarray], model: ServedModel) -> Any:
    prediction = {}
    for name, array in outputs.items():
        row = array[0] if model.max_batch else array
        row = for_json(name, np.asarray(row), BINARY_ADVICE)
        # A single number stays numpy's, of which `orjson` knows how many decimals it needs.
        prediction[name] = np.ascontiguousarray(row) if row.ndim else row[()]
    return prediction if len(prediction) > 1 else next(iter(prediction.values()))
