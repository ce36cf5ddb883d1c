"""Our messages against the descriptors that Triton's own client carries."""

from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from deploy_rnn.serving.grpc.messages import CLASSES, ENUMS


def theirs(name: str) -> Any:
    outer, *inner = name.split(".")
    found = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}[outer]
    for each in inner:
        found = found.nested_types_by_name[each]
    return found


def described(field: Any) -> tuple[Any, ...]:
    inner = field.message_type or field.enum_type
    oneof = field.containing_oneof.name if field.containing_oneof else ""
    named = inner.full_name if inner else ""
    return field.name, field.number, field.type, field.is_repeated, field.is_packed, oneof, named


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_is_triton_s(name: str) -> None:
    ours, expected = CLASSES[name].DESCRIPTOR, theirs(name)
    assert ours.full_name == expected.full_name
    for field in ours.fields:
        assert described(field) == described(expected.fields_by_name[field.name])
        if field.message_type and field.message_type.GetOptions().map_entry:
            entry = expected.fields_by_name[field.name].message_type
            assert [described(each) for each in field.message_type.fields] == [described(each) for each in entry.fields]


@pytest.mark.parametrize("name", ENUMS)
def test_every_name_counts_as_triton_s(name: str) -> None:
    outer, _, own = name.rpartition(".")
    found = theirs(outer).enum_types_by_name[own] if outer else model_config_pb2.DESCRIPTOR.enum_types_by_name[own]
    assert list(enumerate(ENUMS[name])) == [(value.number, value.name) for value in found.values]


@pytest.mark.parametrize("name", ["ModelInferRequest", "ModelInferResponse", "InferTensorContents", "InferParameter"])
def test_messages_of_an_inference_lack_nothing(name: str) -> None:
    ours, expected = CLASSES[name].DESCRIPTOR, theirs(name)
    assert [field.name for field in ours.fields] == [field.name for field in expected.fields]
