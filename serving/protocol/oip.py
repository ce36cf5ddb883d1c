"""The Open Inference Protocol v2, whichever way it travels: a request's parameters, and what a model says of itself.

The dicts have the shape of Triton's JSON, which is that of its protobuf messages too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy_rnn import __version__
from deploy_rnn.errors import InputError, UnsupportedError
from deploy_rnn.tensor_spec import TensorSpec

from ..repository import VERSION
from ..scheduling.limits import Limits
from ..scheduling.request import Request
from ..scheduling.served_model import ServedModel
from ..scheduling.statistics import Statistics
from .tensors import datatype

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "sequence", "statistics")

PLATFORM = "onnxruntime_onnx"

REFUSED_PARAMETERS = {"shared_memory_region": "shared memory", "classification": "the classification of outputs"}


def refuse_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Raises: UnsupportedError: tensor `name` asks for an extension that is not done."""
    for parameter, what in REFUSED_PARAMETERS.items():
        if parameters.get(parameter):
            raise UnsupportedError(f"`{name}` asks for {what} (`{parameter}`), which this server does not do.")


def request(
    inputs: Sequence[tuple[str, np.ndarray]], outputs: Sequence[str], parameters: Mapping[str, Any], seconds: float
) -> Request:
    """What a model is asked.

    Args:
        inputs: name and tensor.
        outputs: the names wanted; empty for all.
        parameters: of the request: `sequence_id`, `sequence_start`, `sequence_end`, `timeout` (microseconds).
        seconds: how long it may take if it has no shorter `timeout`.

    Raises:
        InputError: an input that is given twice, or a parameter of another type.
    """
    tensors = dict(inputs)
    if len(tensors) != len(inputs):
        raise InputError(f"an input is given twice; the inputs are {', '.join(name for name, _ in inputs)}.")
    sequence = _sequence(parameters.get("sequence_id"))
    return Request(
        inputs=tensors,
        outputs=tuple(outputs) or None,
        sequence=sequence,
        start=_flag(parameters, "sequence_start", sequence),
        end=_flag(parameters, "sequence_end", sequence),
        timeout=min(seconds, _timeout(parameters.get("timeout"))),
    )


def _sequence(given: object) -> int | str | None:
    """Triton's clients say 0 or "" for no stream."""
    if isinstance(given, bool) or not isinstance(given, int | str | None):
        raise InputError(f"`sequence_id` is a {type(given).__name__}; give a number or a text.")
    if isinstance(given, str) and len(given) > 128:
        raise InputError(f"`sequence_id` has {len(given)} characters; it may have 128.")
    if isinstance(given, int) and not 0 <= given < 2**64:
        raise InputError("`sequence_id` must be a number from 0 to 2**64 - 1, or a text.")
    return given or None


def _flag(parameters: Mapping[str, Any], name: str, sequence: int | str | None) -> bool:
    given = parameters.get(name, False)
    if not isinstance(given, bool):
        raise InputError(f"`{name}` is a {type(given).__name__}; give true or false.")
    if given and sequence is None:
        raise InputError(f"`{name}` is set, but there is no `sequence_id`, or it is 0.")
    return given


def _timeout(given: object) -> float:
    """Microseconds -> seconds; 0 and nothing are no limit."""
    if isinstance(given, bool) or not isinstance(given, int | None) or (given or 0) < 0:
        raise InputError(f"`timeout` (={str(given)[:40]}) must be a whole number of microseconds.")
    return given / 1e6 if given else float("inf")


def server_metadata() -> dict[str, Any]:
    return {"name": "deploy-rnn", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(spec) for spec in model.inputs],
        "outputs": [_tensor_metadata(spec) for spec in model.outputs],
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": _sizes(spec.shape)}


def _sizes(shape: Sequence[int | str]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]


def model_config(model: ServedModel, limits: Limits) -> dict[str, Any]:
    """As Triton would show it; `dims` lack the batch, as everywhere in a Triton configuration with a batch size."""
    skip = 1 if model.max_batch else 0
    inputs = [
        _tensor_config(spec, skip) | {"format": "FORMAT_NONE", "optional": spec.name in model.optional}
        for spec in model.inputs
    ]
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": model.max_batch,
        "input": inputs,
        "output": [_tensor_config(spec, skip) for spec in model.outputs],
        "model_transaction_policy": {"decoupled": False},
        **_scheduling(model, limits),
    }


def _tensor_config(spec: TensorSpec, skip: int) -> dict[str, Any]:
    kind = datatype(spec.dtype)
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": _sizes(spec.shape[skip:])}


def _scheduling(model: ServedModel, limits: Limits) -> dict[str, Any]:
    microseconds = round(limits.max_wait * 1e6)
    if not model.streaming:
        return {"dynamic_batching": {"max_queue_delay_microseconds": microseconds}}
    oldest = {"max_candidate_sequences": limits.max_streams, "max_queue_delay_microseconds": microseconds}
    idle = round(limits.stream_idle * 1e6)
    return {"sequence_batching": {"max_sequence_idle_microseconds": idle, "oldest": oldest}}


def model_statistics(model: ServedModel) -> dict[str, Any]:
    """Since the model was loaded; what Triton counts and this server does not take part in is 0."""
    found = model.statistics()
    return {
        "name": model.name,
        "version": VERSION,
        "last_inference": round((found.last_inference or 0.0) * 1e3),
        "inference_count": found.rows,
        "execution_count": found.executions,
        "inference_stats": _inference_statistics(found),
        "batch_stats": [_batch_statistics(rows, *each) for rows, each in sorted(found.batch_rows.items())],
    }


def _inference_statistics(found: Statistics) -> dict[str, Any]:
    nothing = _duration(0, 0)
    return {
        "success": _duration(found.successes, found.queue_seconds + found.compute_seconds),
        "fail": _duration(found.failures, 0),
        "queue": _duration(found.successes, found.queue_seconds),
        "compute_input": _duration(found.successes, 0),
        "compute_infer": _duration(found.successes, found.compute_seconds),
        "compute_output": _duration(found.successes, 0),
        "cache_hit": nothing,
        "cache_miss": nothing,
    }


def _batch_statistics(rows: int, executions: int, seconds: float) -> dict[str, Any]:
    nothing = _duration(executions, 0)
    return {
        "batch_size": rows,
        "compute_input": nothing,
        "compute_infer": _duration(executions, seconds),
        "compute_output": nothing,
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
