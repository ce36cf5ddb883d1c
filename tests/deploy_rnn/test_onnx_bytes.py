"""The names of the files of external data are found wherever a tensor can be, and damaged bytes are refused."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

from deploy_rnn.onnx_bytes import (
    _MESSAGES,
    ExternalTensor,
    FormatError,
    OnnxBytes,
    external_tensors,
    needed_bytes,
)


def external(name: str, location: str, offset: int = 0) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": str(offset), "length": "24"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def node(**attribute: object) -> onnx.NodeProto:
    made = helper.make_node("Constant", [], ["y"], name="location")
    made.attribute.append(AttributeProto(name="a", **attribute))  # type: ignore[arg-type]
    return made


def in_initializers(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def in_a_branch_of_a_branch(model: ModelProto, tensor: TensorProto) -> None:
    inner = GraphProto(node=[node(t=tensor)])
    model.graph.node.append(node(g=GraphProto(node=[node(graphs=[inner])])))


def in_a_body(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(node(g=GraphProto(initializer=[tensor])))


def in_a_function(model: ModelProto, tensor: TensorProto) -> None:
    model.functions.add(name="f").node.append(node(tensors=[tensor]))


def in_a_sparse_tensor(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def in_training(model: ModelProto, tensor: TensorProto) -> None:
    model.training_info.add().algorithm.initializer.append(tensor)


PLACES = [
    in_initializers, in_a_branch_of_a_branch, in_a_body, in_a_function, in_a_sparse_tensor, in_training,
]  # fmt: skip


@pytest.mark.parametrize("put", PLACES)
def test_external_data_is_found(put: Callable[[ModelProto, TensorProto], None]) -> None:
    model = ModelProto(ir_version=9)
    model.graph.node.append(helper.make_node("Relu", ["location"], ["y"]))
    assert external_tensors(model.SerializeToString()) == []
    put(model, external("w", "../secret.bin", 64))
    (tensor,) = external_tensors(model.SerializeToString())
    assert (tensor.name, tensor.location) == ("w", "../secret.bin")
    assert (tensor.dtype, tensor.shape, tensor.entries["offset"]) == (1, [2, 3], "64")
    assert tensor.is_initializer == (put is in_initializers)


def test_every_way_of_the_format_to_a_tensor_is_walked() -> None:
    """What onnx's own description of the format says: no field that can hold a tensor is missing."""
    kinds = {
        name: getattr(onnx, name).DESCRIPTOR
        for name in ("ModelProto", *{kind for fields in _MESSAGES.values() for kind in fields.values()})
    }  # fmt: skip
    holds: set[str] = {"TensorProto"}
    while True:
        more = {
            name
            for name, kind in kinds.items()
            for field in kind.fields
            if field.message_type is not None and field.message_type.name in holds
        }
        if more <= holds:
            break
        holds |= more
    for name in holds - {"TensorProto"}:
        expected = {
            field.number: field.message_type.name
            for field in kinds[name].fields
            if field.message_type is not None and field.message_type.name in holds
        }
        assert dict(_MESSAGES[name]) == expected
    assert holds - {"TensorProto"} == _MESSAGES.keys()


def test_a_tensor_that_names_two_files_is_refused() -> None:
    model = ModelProto()
    tensor = external("w", "weights.bin")
    tensor.external_data.add(key="location", value="other.bin")
    model.graph.initializer.append(tensor)
    with pytest.raises(FormatError, match="a tensor has `location` twice"):
        external_tensors(model.SerializeToString())


def test_damaged_bytes_are_refused_or_read() -> None:
    """Neither another error, nor an endless walk."""
    model = ModelProto(ir_version=9)
    for put in PLACES:
        put(model, external("w", "weights.bin"))
    data = model.SerializeToString()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(data)
        for position in rng.integers(len(data), size=2):
            damaged[position] = rng.integers(256)
        try:
            external_tensors(bytes(damaged[: rng.integers(len(data) // 2, len(data) + 1)]))
        except FormatError:
            refused += 1
    assert refused > 500


def test_shared_weights_are_parts_of_the_file() -> None:
    model = ModelProto()
    model.graph.initializer.append(external("aligned", "w.bin", 64))
    model.graph.initializer.append(external("unaligned", "w.bin", 65))
    model.graph.initializer.append(external("beyond", "w.bin", 128))
    model.graph.initializer.append(external("elsewhere", "v.bin"))
    strange = external("strange", "w.bin")
    strange.data_type = TensorProto.FLOAT8E4M3FN
    model.graph.initializer.append(strange)
    model.graph.initializer.append(external("not a number", "w.bin"))
    model.graph.initializer[-1].external_data[1].value = "9" * 5000
    model.graph.initializer.append(external("of many axes", "w.bin"))
    model.graph.initializer[-1].dims.extend([1] * 70)
    graph = model.SerializeToString()
    data = np.arange(128 + 23, dtype=np.uint8)
    files = {"w.bin": data, "v.bin": data[:0]}
    shared = OnnxBytes("m", graph, external_tensors(graph), files).shared_weights()
    assert list(shared) == ["aligned"]
    weight = shared["aligned"]
    assert weight.shape == (2, 3)
    assert weight.dtype == np.float32
    assert np.shares_memory(weight, data)
    np.testing.assert_array_equal(weight, data[64:88].view(np.float32).reshape(2, 3))


def test_how_much_of_a_file_is_needed() -> None:
    tensors = [ExternalTensor(dtype=1, shape=[2, 3], entries={"location": "a"})]
    tensors.append(ExternalTensor(entries={"location": "a", "offset": "64", "length": "8"}))
    assert needed_bytes(tensors) == {"a": 72}
    tensors.append(ExternalTensor(dtype=99, entries={"location": "a"}))
    tensors.append(ExternalTensor(dtype=11, shape=[], entries={"location": "b", "offset": "8"}))
    assert needed_bytes(tensors) == {"a": None, "b": 16}
