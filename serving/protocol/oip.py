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
from .tensors import datatype

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


def refuse_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """
    Raises:
        UnsupportedError: the parameters of tensor `name` request an extension that is not implemented.
    """
    for parameter, extension in REFUSED_PARAMETERS.items():
        if parameters.get(parameter):
            raise UnsupportedError(
                f"`{name}` requests {extension} (`{parameter}`), which is not supported."
            )


def request(
    inputs: Sequence[tuple[str, np.ndarray]],
    outputs: Sequence[str],
    parameters: Mapping[str, Any],
    seconds: float,
) -> Request:
    """The request to a model.

    Args:
        inputs: name and tensor.
        outputs: the names wanted; empty for all.
        parameters: of the request: `sequence_id`, `sequence_start`, `sequence_end`, `timeout` (microseconds).
        seconds: how long it may take if it has no shorter `timeout`.

    Raises:
        InputError: an input appears twice, or a parameter has the wrong type or value.
    """
    tensors = dict(inputs)
    if len(tensors) != len(inputs):
        names = ", ".join(name for name, _ in inputs)
        raise InputError(f"an input appears twice; the inputs are {names}.")
    sequence = _sequence(parameters.get("sequence_id"))
    return Request(
        inputs=tensors,
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
        raise InputError(
            f"`sequence_id` must be an integer or a string, got {type(value).__name__}."
        )
    if isinstance(value, str) and len(value) > MAX_SEQUENCE_CHARACTERS:
        raise InputError(
            f"`sequence_id` has {len(value)} characters; must be at most {MAX_SEQUENCE_CHARACTERS}."
        )
    if isinstance(value, int) and not 0 <= value < 2**64:
        raise InputError("`sequence_id` must be an integer from 0 to 2**64 - 1, or a string.")
    return value or None


def _flag(parameters: Mapping[str, Any], name: str, sequence: int | str | None) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"`{name}` must be true or false, got {type(value).__name__}.")
    if value and sequence is None:
        raise InputError(f"`{name}` is set, but `sequence_id` is missing, 0 or empty.")
    return value


def _timeout(microseconds: object) -> float:
    """A `timeout` in seconds; 0, or none at all, means no limit."""
    value = 0 if microseconds is None else microseconds
    # bool is a subclass of int.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        text = str(value)[:40]
        raise InputError(
            f"`timeout` (={text}) must be a number of microseconds, an integer from 0 to 2**64 - 1."
        )
    return value / 1e6 if value else float("inf")


def server_metadata() -> dict[str, Any]:
    return {
        "name": "deploy-rnn",
        "version": __version__,
        "extensions": list(EXTENSIONS),
    }


def model_metadata(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(spec) for spec in model.inputs],
        "outputs": [_tensor_metadata(spec) for spec in model.outputs],
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": datatype(spec.dtype),
        "shape": _sizes(spec.shape),
    }


def _sizes(shape: Sequence[int | str]) -> list[int]:
    """The protocol writes a dynamic axis as -1."""
    return [size if isinstance(size, int) else -1 for size in shape]


def model_config(model: ServedModel, limits: Limits) -> dict[str, Any]:
    """The model configuration that Triton would show."""
    # In a configuration with a batch size, `dims` leave out the batch axis.
    first_axis = 1 if model.max_batch else 0
    inputs = []
    for spec in model.inputs:
        config = _tensor_config(spec, first_axis)
        config["format"] = "FORMAT_NONE"
        config["optional"] = spec.name in model.optional
        inputs.append(config)
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": model.max_batch,
        "input": inputs,
        "output": [_tensor_config(spec, first_axis) for spec in model.outputs],
        "model_transaction_policy": {"decoupled": False},
        # The protocol writes every dynamic axis as -1; here they have their names.
        "parameters": {"shapes": {"string_value": _named_shapes(model)}},
        **_scheduling(model, limits),
    }


def _named_shapes(model: ServedModel) -> str:
    """Input or output -> its axes, as JSON: a number for a fixed axis, a name for a dynamic one."""
    specs = (*model.inputs, *model.outputs)
    return json.dumps({spec.name: spec.shape for spec in specs})


def _tensor_config(spec: TensorSpec, first_axis: int) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": f"TYPE_{datatype(spec.dtype)}",
        "dims": _sizes(spec.shape[first_axis:]),
    }


def _scheduling(model: ServedModel, limits: Limits) -> dict[str, Any]:
    max_wait = _microseconds(limits.max_wait)
    if not model.streaming:
        return {"dynamic_batching": {"max_queue_delay_microseconds": max_wait}}
    return {
        "sequence_batching": {
            "max_sequence_idle_microseconds": _microseconds(limits.stream_idle),
            "oldest": {
                "max_candidate_sequences": limits.max_streams,
                "max_queue_delay_microseconds": max_wait,
            },
        }
    }


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


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
