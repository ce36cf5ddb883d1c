"""ONNX's own RNN, GRU and LSTM in a model: what decides which runtimes compute them right."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx

RECURRENT = {"RNN": 2, "GRU": 2, "LSTM": 3}
"""ONNX's recurrent operators -> how many outputs each has."""

SEQUENCE_LENS = 4
"""Their input that has the lengths of the rows."""

INITIAL_H = 5
"""Their input that has the first states."""

ANY_STEPS = 7919
"""Stands for the size of a dynamic first axis: no other axis is likely to have it."""

SMALL_BYTES = 4096
"""Constants up to this size may be shapes, which shape inference reads; larger ones are weights."""


@dataclass(frozen=True)
class RecurrentFacts:
    """Which operators, by type.

    Attributes:
        sequence_lens: those that are given lengths.
        activations: the activations that they name, in lower case.
        single_step: GRU, and LSTM of one direction with first states, whose steps are a dynamic first axis of an input
            of the file. A converter that takes such an axis for 1 sees a single step: where they read the input
            itself, or else where no other axis of what they read is dynamic.
        unlisted_outputs: those that list fewer outputs than they have.
        without_states: those that are given no first states.
        final_only: those whose final h is an output of the file, and whose other h nobody reads.
    """

    sequence_lens: frozenset[str] = frozenset()
    activations: frozenset[str] = frozenset()
    single_step: frozenset[str] = frozenset()
    unlisted_outputs: frozenset[str] = frozenset()
    without_states: frozenset[str] = frozenset()
    final_only: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> "RecurrentFacts":
        """Read `nodes`, which are all of `model`, its loops and functions."""
        found = [
            node for node in nodes if node.op_type in RECURRENT and node.domain in ("", "ai.onnx")
        ]
        outputs = {value.name for value in model.graph.output}
        return cls(
            sequence_lens=_types(node for node in found if _has(node.input, SEQUENCE_LENS)),
            activations=frozenset(name for node in found for name in _activations(node)),
            single_step=_single_step(model, found),
            unlisted_outputs=_types(
                node for node in found if len(node.output) < RECURRENT[node.op_type]
            ),
            without_states=_types(node for node in found if not _has(node.input, INITIAL_H)),
            final_only=_types(
                node
                for node in found
                if not node.output[0] and _has(node.output, 1) and node.output[1] in outputs
            ),
        )


def _types(nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
    return frozenset(node.op_type for node in nodes)


def _has(names: Collection[str], position: int) -> bool:
    return any([*names][position : position + 1])


def _activations(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        if attribute.name == "activations":
            yield from (text.decode(errors="replace").lower() for text in attribute.strings)


def _single_step(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> frozenset[str]:
    candidates = [node for node in nodes if node.op_type == "GRU" or _is_plain_lstm(node)]
    first_axes = {
        value.name
        for value in model.graph.input
        if value.type.tensor_type.shape.dim and not _is_fixed(value.type.tensor_type.shape.dim[0])
    }
    if not candidates or not first_axes:
        return frozenset()
    shapes = _shapes(model, first_axes)
    return _types(
        node
        for node in candidates
        if node.input[0] in first_axes or shapes.get(node.input[0], (0,))[0] == ANY_STEPS
    )


def _is_plain_lstm(node: onnx.NodeProto) -> bool:
    directions = [attribute.s for attribute in node.attribute if attribute.name == "direction"]
    return (
        node.op_type == "LSTM"
        and directions != [b"bidirectional"]
        and _has(node.input, INITIAL_H)
        and _has(node.input, INITIAL_H + 1)
    )


def _is_fixed(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return dim.HasField("dim_value") and dim.dim_value >= 0


def _shapes(model: onnx.ModelProto, first_axes: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that are known when the first axis of these inputs is."""
    bare = onnx.ModelProto()
    bare.ir_version = max(model.ir_version, 4)  # before it, constants had to be inputs
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    for value in model.graph.input:
        copied = bare.graph.input.add()
        copied.CopyFrom(value)
        if value.name in first_axes:
            copied.type.tensor_type.shape.dim[0].dim_value = ANY_STEPS
    # The weights are not read, which may be in a file of their own.
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= SMALL_BYTES and not tensor.external_data:
            bare.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in listed:
            bare.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    shapes = {}
    for value in inferred.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if dims and all(map(_is_fixed, dims)):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes
