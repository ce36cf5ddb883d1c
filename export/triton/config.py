"""config.pbtxt: what Triton has to know of a model, as the text of its `ModelConfig` message."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy_rnn import __version__
from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import ExportError
from deploy_rnn.serving.engine.signature import Signature

PYTHON = "python"
ONNXRUNTIME = "onnxruntime"
BACKENDS = (PYTHON, ONNXRUNTIME)

IDLE_SECONDS = 300
"""Time without a chunk after which a sequence ends, as in deploy-rnn's own server; Triton's default is 1 s."""

MOST_SEQUENCES = 1024
"""Sequences that take turns at a time; further ones wait until one of them ends."""

DATA_TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64", "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
}  # fmt: skip


class Enum(str):
    """The name of an enumeration's value, which stands without quotes."""


@dataclass(frozen=True)
class State:
    """A state that Triton carries from chunk to chunk.

    Attributes:
        input_name, output_name: in the graph for Triton.
        bundle_input, bundle_output: in the bundle.
        tensor: of the bundle, in the layout of clients.
    """

    input_name: str
    output_name: str
    bundle_input: str
    bundle_output: str
    tensor: Tensor


def names_of(states: Sequence[State]) -> dict[str, str]:
    """The name of a state in the bundle -> that in the graph for Triton; inputs and outputs."""
    names = {}
    for state in states:
        names[state.bundle_input] = state.input_name
        names[state.bundle_output] = state.output_name
    return names


@dataclass(frozen=True)
class Config:
    """A model's configuration.

    Attributes:
        name: of the model.
        backend: `PYTHON` or `ONNXRUNTIME`.
        signature: of the bundle.
        max_batch_size: rows that Triton puts together; 0 if the tensors have no batch axis, or rows affect each other.
        states: that Triton carries; with the Python backend it carries none.
        shapes: of the graph that Triton runs, tensor -> shape, where that is for one number of steps only.
        precision: of the graphs that the Python backend opens; None for a bundle with one.
    """

    name: str
    backend: str
    signature: Signature
    max_batch_size: int
    states: Sequence[State] = ()
    shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    precision: str | None = None

    def text(self) -> str:
        """The file."""
        body = "\n".join([*self._comments(), *_lines(self._fields())]) + "\n"
        return f"{HEADER} {__version__}; {digest(body)}\n{body}"

    def _comments(self) -> Iterator[str]:
        if self.backend == PYTHON:
            yield "# Triton's Python needs: pip install 'deploy-rnn[onnxruntime]'"
        for name in self.signature.lengths:
            yield (
                f"# `{name}`: how many steps of each row count. Triton does not pad: a client pads the rows of its "
                "request to one number of steps."
            )
            if self.backend == ONNXRUNTIME:
                yield f"# Only requests of the same number of steps share a run, whatever their `{name}`."
        for state in self.states:
            yield (
                f"# {state.input_name}, {state.output_name}: {state.bundle_input}, {state.bundle_output}"
            )

    def _fields(self) -> dict[str, Any]:
        signature = self.signature
        state_outputs = set(signature.states.values())
        inputs = [spec for spec in signature.client_inputs if spec.name not in signature.states]
        outputs = [spec for spec in signature.client_outputs if spec.name not in state_outputs]
        fields: dict[str, Any] = {
            "name": self.name,
            "backend": self.backend,
            "max_batch_size": self.max_batch_size,
            "version_policy": {"latest": {"num_versions": 1}},
            "input": [self._input(spec) for spec in inputs],
            "output": [self._tensor(spec) for spec in outputs],
            "instance_group": [{"kind": Enum("KIND_CPU"), "count": 1}],
        }
        if self.backend == PYTHON:
            parameters = {"provider": "CPUExecutionProvider"}
            if self.precision is not None:
                parameters["precision"] = self.precision
            fields["parameters"] = [
                {"key": key, "value": {"string_value": value}} for key, value in parameters.items()
            ]
        if signature.states:
            fields["sequence_batching"] = self._sequence_batching()
        elif self.max_batch_size:
            fields["dynamic_batching"] = {}
        return fields

    def _input(self, spec: Tensor) -> dict[str, Any]:
        fields = self._tensor(spec)
        if self.backend == PYTHON:
            if spec.name in self.signature.optional:
                fields["optional"] = True
            # deploy-rnn gets each request by itself, and pads where that pays.
            if self.max_batch_size:
                fields["allow_ragged_batch"] = True
        return fields

    def _tensor(self, spec: Tensor) -> dict[str, Any]:
        dims = self._dims(spec)
        fields: dict[str, Any] = {
            "name": spec.name,
            "data_type": _data_type(spec),
            "dims": dims or [1],
        }
        if not dims:
            fields["reshape"] = {"shape": []}
        return fields

    def _dims(self, spec: Tensor) -> list[int]:
        shape = self.shapes.get(spec.name, spec.shape)
        sizes = shape[1:] if self.max_batch_size else shape
        return [size if isinstance(size, int) else -1 for size in sizes]

    def _sequence_batching(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "max_sequence_idle_microseconds": IDLE_SECONDS * 1_000_000,
            "oldest": {"max_candidate_sequences": MOST_SEQUENCES},
        }
        if self.states:
            fields["state"] = [self._state(state) for state in self.states]
        return fields

    def _state(self, state: State) -> dict[str, Any]:
        data_type, dims = _data_type(state.tensor), self._dims(state.tensor)
        initial = {"name": "zeros", "data_type": data_type, "dims": dims, "zero_data": True}
        return {
            "input_name": state.input_name,
            "output_name": state.output_name,
            "data_type": data_type,
            "dims": dims,
            "initial_state": [initial],
        }


HEADER = "# Written by deploy-rnn"

_HEADER = re.compile(rf"{HEADER} \S+; ([0-9a-f]{{16}})\n")


def digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def written_digest(text: str) -> str | None:
    """The digest that stands in a file of deploy-rnn: of what it wrote, whatever was changed since; else None."""
    match = _HEADER.match(text)
    return match[1] if match else None


def is_unchanged(text: str) -> bool:
    """Whether a file is as deploy-rnn wrote it."""
    match = _HEADER.match(text)
    return match is not None and digest(text[match.end() :]) == match[1]


def _data_type(spec: Tensor) -> Enum:
    if spec.dtype not in DATA_TYPES:
        raise ExportError(
            f"`{spec.name}` has dtype {spec.dtype}; for Triton it must be one of {', '.join(DATA_TYPES)}."
        )
    return Enum(DATA_TYPES[spec.dtype])


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A message of protobuf as text."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _block(name, value, indent)
        elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value) and value:
            for item in value:
                yield from _block(name, item, indent)
        else:
            yield f"{indent}{name}: {_value(value)}"


def _block(name: str, fields: Mapping[str, Any], indent: str) -> Iterator[str]:
    if not fields:
        yield f"{indent}{name} {{ }}"
        return
    yield f"{indent}{name} {{"
    yield from _lines(fields, indent + "  ")
    yield f"{indent}}}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Enum):
        return str(value)
    # Strings and booleans of JSON are those of protobuf's text, too.
    return json.dumps(value)
