"""The Open Inference Protocol v2 over HTTP and gRPC alike: parameters of a request, and descriptions of a model.

The descriptions are dicts in the shape of Triton's JSON, which is also that of its protobuf messages.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy_rnn import __version__
from deploy_rnn.errors import InputError, UnsupportedError
from deploy_rnn.tensor_spec import TensorSpec

from ..repository import VERSION as VERSION
from ..scheduling.limits import Limits
from ..scheduling.request import Request
from ..scheduling.served_model import ServedModel
from ..scheduling.statistics import Statistics
from .tensors import DATATYPE_OF, datatype, shown

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "sequence",
    "statistics",
)

PLATFORM = "onnxruntime_onnx"

REFUSED_PARAMETERS = {
    "shared_memory_region": "shared memory",
    "classification": "classification of outputs",
}
"""Parameter of a tensor -> the extension that it requests."""

MAX_SEQUENCE_CHARACTERS = 128

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
"""What a configuration can say of a limit that is beyond, or infinite."""


def refuse_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """
    Raises:
        UnsupportedError: the parameters of tensor `name` request an extension that is not implemented.
    """
    if not parameters:
        return
    for parameter, extension in REFUSED_PARAMETERS.items():
        if parameters.get(parameter):
            raise UnsupportedError(
                f"`{name}` requests {extension} (`{parameter}`), which is not supported."
            )


def request(
    inputs: Sequence[str],
    outputs: Sequence[str],
    parameters: Mapping[str, Any],
    seconds: float,
) -> Request:
    """The request to a model, whose tensors are still to come.

    Args:
        inputs: their names.
        outputs: the names wanted; empty for all.
        parameters: of the request: `sequence_id`, `sequence_start`, `sequence_end`, `timeout` (microseconds).
        seconds: how long it may take if it has no shorter `timeout`.

    Raises:
        InputError: an input appears twice, or a parameter has the wrong type or value.
    """
    if len(set(inputs)) != len(inputs):
        raise InputError(f"an input appears twice; the inputs are {', '.join(inputs)}.")
    sequence = _sequence(parameters.get("sequence_id"))
    return Request(
        inputs={},
        outputs=tuple(outputs) or None,
        sequence=sequence,
        start=_flag(parameters, "sequence_start", sequence),
        end=_flag(parameters, "sequence_end", sequence),
        timeout=min(seconds, _timeout(parameters.get("timeout"))),
    )


def _sequence(value: object) -> int | str | None:
    """The stream of a `sequence_id`; Triton's clients send 0 or "" for none."""
    # bool is a subclass of int.
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise InputError(f"`sequence_id` must be an integer or a string, got {shown(value)}.")
    if isinstance(value, str) and len(value) > MAX_SEQUENCE_CHARACTERS:
        raise InputError(
            f"`sequence_id` has {len(value)} characters; must be at most {MAX_SEQUENCE_CHARACTERS}."
        )
    if isinstance(value, str):
        check_text("sequence_id", value)
    if isinstance(value, int) and not 0 <= value < 2**64:
        raise InputError("`sequence_id` must be an integer from 0 to 2**64 - 1, or a string.")
    return value or None


def check_text(name: str, value: str) -> None:
    """
    Raises:
        InputError: a string of JSON that is not text, and that no header, log or other protocol can carry.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"`{name}` (={value[:40]!a}) must be text; it contains half of a surrogate pair."
        ) from None


def _flag(parameters: Mapping[str, Any], name: str, sequence: int | str | None) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"`{name}` must be true or false, got {shown(value)}.")
    if value and sequence is None:
        raise InputError(f"`{name}` is set, but `sequence_id` is missing, 0 or empty.")
    return value


def _timeout(microseconds: object) -> float:
    """A `timeout` in seconds; 0, or none at all, means no limit."""
    value = 0 if microseconds is None else microseconds
    # bool is a subclass of int.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise InputError(
            f"`timeout` (={shown(value)}) must be a number of microseconds, an integer from 0 to 2**64 - 1."
        )
    return value / 1e6 if value else float("inf")


def server_metadata() -> dict[str, Any]:
    return {
        "name": "deploy-rnn",
        "version": __version__,
        "extensions": list(EXTENSIONS),
    }


def in_layout_of_model(request: Request, model: ServedModel) -> Request:
    """The request, with [B] in place of [B, 1] where the model has no other axis: clients may send either."""
    axes = _first_axis(model)
    changed: dict[str, np.ndarray] = {}
    for spec in model.inputs:
        array = request.inputs.get(spec.name)
        if array is None or len(spec.shape) != axes:
            continue
        if array.ndim == axes + 1 and array.shape[-1] == 1:
            changed[spec.name] = array[..., 0]
    return request.with_inputs({**request.inputs, **changed}) if changed else request


def in_words_of_protocol(error: InputError, request: Request, model: ServedModel) -> InputError:
    """The error of a model that refuses a request.

    Of a datatype or a shape, which the model calls what numpy calls it, another one: with the client's words.
    """
    if not request.inputs.keys() <= {spec.name for spec in model.inputs}:
        return error
    for spec in model.inputs:
        array = request.inputs.get(spec.name)
        if array is None:
            continue
        if array.dtype != spec.dtype:
            given, needed = DATATYPE_OF[array.dtype.name], datatype(spec.dtype)
            return InputError(f"`{spec.name}` has datatype {given}; must be {needed}.")
        if not fits(array.shape, spec.shape):
            needed = _shape_in_words(spec, model)
            return InputError(f"`{spec.name}` has shape {list(array.shape)}; must be {needed}.")
    return error


def fits(shape: Sequence[int], expected: Sequence[int | str]) -> bool:
    """Whether a shape is one of those that a spec allows."""
    if len(shape) != len(expected):
        return False
    pairs = zip(shape, expected, strict=True)
    return all(size == axis or (isinstance(axis, str) and size > 0) for size, axis in pairs)


def _shape_in_words(spec: TensorSpec, model: ServedModel) -> str:
    sizes = ", ".join(map(str, spec.shape))
    is_flat = len(spec.shape) == _first_axis(model)
    either = f" or [{sizes}, 1]" if is_flat and sizes else ""
    no_zero = ", with no size 0" if any(isinstance(size, str) for size in spec.shape) else ""
    return f"[{sizes}]{either}{no_zero}"


def _first_axis(model: ServedModel) -> int:
    """The first axis of a tensor that is not that of the batch."""
    return 1 if model.max_batch else 0


def _listed_inputs(model: ServedModel) -> list[TensorSpec]:
    """The inputs without the states, which Triton does not list either: the server holds them."""
    return [spec for spec in model.inputs if spec.name not in model.states]


def _listed_outputs(model: ServedModel) -> list[TensorSpec]:
    """The outputs without the states, unless they are all there is."""
    states = set(model.states.values())
    listed = [spec for spec in model.outputs if spec.name not in states]
    return listed or list(model.outputs)


def model_metadata(model: ServedModel) -> dict[str, Any]:
    first_axis = _first_axis(model)
    inputs = []
    for spec in _listed_inputs(model):
        shape = _sizes(spec.shape[:first_axis]) + _input_dims(spec, first_axis)
        inputs.append(_tensor_metadata(spec, shape))
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": [_tensor_metadata(spec, _sizes(spec.shape)) for spec in _listed_outputs(model)],
    }


def _tensor_metadata(spec: TensorSpec, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": shape}


def _input_dims(spec: TensorSpec, first_axis: int) -> list[int]:
    """The axes of an input but that of the batch; of lengths [B], one of size 1: clients of Triton need one."""
    return _sizes(spec.shape[first_axis:]) or [1]


def _sizes(shape: Sequence[int | str]) -> list[int]:
    """The protocol writes a dynamic axis as -1."""
    return [size if isinstance(size, int) else -1 for size in shape]


def model_config(model: ServedModel, limits: Limits) -> dict[str, Any]:
    """The model configuration that Triton would show."""
    # In a configuration with a batch size, `dims` leave out the batch axis.
    first_axis = _first_axis(model)
    inputs = []
    for spec in _listed_inputs(model):
        config = _tensor_config(spec, _input_dims(spec, first_axis))
        config["format"] = "FORMAT_NONE"
        config["optional"] = spec.name in model.optional
        if len(spec.shape) == first_axis:
            config["reshape"] = {"shape": []}
        inputs.append(config)
    outputs = []
    for spec in _listed_outputs(model):
        outputs.append(_tensor_config(spec, _sizes(spec.shape[first_axis:])))
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": min(model.max_batch, MAX_INT32),
        "input": inputs,
        "output": outputs,
        "model_transaction_policy": {"decoupled": False},
        # The protocol writes every dynamic axis as -1; here they have their names.
        "parameters": {
            "shapes": {"string_value": _named_shapes(model)},
            "precision": {"string_value": model.precision},
        },
        **_scheduling(model, limits),
    }


def _named_shapes(model: ServedModel) -> str:
    """Input or output -> its axes, as JSON: a number for a fixed axis, a name for a dynamic one."""
    specs = (*model.inputs, *model.outputs)
    return json.dumps({spec.name: spec.shape for spec in specs})


def _tensor_config(spec: TensorSpec, dims: Sequence[int]) -> dict[str, Any]:
    return {"name": spec.name, "data_type": _data_type(spec), "dims": dims}


def _data_type(spec: TensorSpec) -> str:
    return f"TYPE_{datatype(spec.dtype)}"


def _scheduling(model: ServedModel, limits: Limits) -> dict[str, Any]:
    max_wait = _microseconds(limits.max_wait)
    if not model.streaming:
        return {"dynamic_batching": {"max_queue_delay_microseconds": max_wait}}
    return {
        "sequence_batching": {
            "max_sequence_idle_microseconds": _microseconds(limits.stream_idle),
            "oldest": {
                "max_candidate_sequences": min(limits.max_streams, MAX_INT32),
                "max_queue_delay_microseconds": max_wait,
            },
            "state": [_state_config(spec, model) for spec in _states(model)],
        }
    }


def _states(model: ServedModel) -> list[TensorSpec]:
    return [spec for spec in model.inputs if spec.name in model.states]


def _state_config(spec: TensorSpec, model: ServedModel) -> dict[str, Any]:
    """A state that the server holds; a client that carries it itself sends and asks for it by these names."""
    dims = _sizes(spec.shape[_first_axis(model) :])
    initial = {"name": "zeros", "data_type": _data_type(spec), "dims": dims, "zero_data": True}
    return {
        "input_name": spec.name,
        "output_name": model.states[spec.name],
        "data_type": _data_type(spec),
        "dims": dims,
        "initial_state": [initial],
    }


def _microseconds(seconds: float) -> int:
    return round(min(seconds * 1e6, MAX_INT64))


def model_statistics(model: ServedModel) -> dict[str, Any]:
    """The statistics of a model since it was loaded; what Triton counts and this server has no part in is 0."""
    statistics = model.statistics()
    last_seconds = statistics.last_inference or 0.0
    batch_statistics = []
    for rows, (executions, seconds) in sorted(statistics.batch_rows.items()):
        batch_statistics.append(_batch_statistics(rows, executions, seconds))
    return {
        "name": model.name,
        "version": VERSION,
        "last_inference": round(last_seconds * 1e3),  # milliseconds since 1970
        "inference_count": statistics.rows,
        "execution_count": statistics.executions,
        "inference_stats": _inference_statistics(statistics),
        "batch_stats": batch_statistics,
    }


def _inference_statistics(statistics: Statistics) -> dict[str, Any]:
    successes = statistics.successes
    return {
        "success": _duration(successes, statistics.queue_seconds + statistics.compute_seconds),
        "fail": _duration(statistics.failures, 0),
        "queue": _duration(successes, statistics.queue_seconds),
        "compute_input": _duration(successes, 0),
        "compute_infer": _duration(successes, statistics.compute_seconds),
        "compute_output": _duration(successes, 0),
        "cache_hit": _duration(0, 0),
        "cache_miss": _duration(0, 0),
    }


def _batch_statistics(rows: int, executions: int, seconds: float) -> dict[str, Any]:
    return {
        "batch_size": rows,
        "compute_input": _duration(executions, 0),
        "compute_infer": _duration(executions, seconds),
        "compute_output": _duration(executions, 0),
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
