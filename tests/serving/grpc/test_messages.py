"""Our messages against oip.proto, and against the descriptors that Triton's own client carries."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from tritonclient.grpc import model_config_pb2, service_pb2

import deploy_rnn.serving.grpc
from deploy_rnn.serving.grpc.messages import CLASSES, SERVICE
from deploy_rnn.serving.grpc.service import UNSUPPORTED_METHODS, Service
from deploy_rnn.serving.protocol.inference import Inference
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.settings import Settings

FOLDER = resources.files(deploy_rnn.serving.grpc)
(COMPILED,) = FileDescriptorSet.FromString(FOLDER.joinpath("oip.binpb").read_bytes()).file


def test_the_compiled_form_is_that_of_the_proto_file() -> None:
    """Written out again, every line of it is one of oip.proto, in order; run the command that stands there if not."""
    lines = FOLDER.joinpath("oip.proto").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("//")] == list(
        written_out(COMPILED)
    )


def written_out(file: FileDescriptorProto) -> Iterator[str]:
    """The lines of a .proto file, without comments and empty lines."""
    yield f'syntax = "{file.syntax}";'
    yield f"package {file.package};"
    for service in file.service:
        yield from service_lines(service, file.package)
    for message in file.message_type:
        yield from message_lines(message, f".{file.package}.{message.name}", "")
    for enum in file.enum_type:
        yield from enum_lines(enum, "")


def service_lines(service: ServiceDescriptorProto, package: str) -> Iterator[str]:
    yield f"service {service.name} {{"
    for method in service.method:
        request = "stream " * method.client_streaming + method.input_type.removeprefix(
            f".{package}."
        )
        response = "stream " * method.server_streaming + method.output_type.removeprefix(
            f".{package}."
        )
        yield f"  rpc {method.name}({request}) returns ({response});"
    yield "}"


def message_lines(message: DescriptorProto, full_name: str, indent: str) -> Iterator[str]:
    if not message.field:
        yield f"{indent}message {message.name} {{}}"
        return
    yield f"{indent}message {message.name} {{"
    for enum in message.enum_type:
        yield from enum_lines(enum, f"{indent}  ")
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from message_lines(nested, f"{full_name}.{nested.name}", f"{indent}  ")
    oneof = None
    for field in message.field:
        field_oneof = (
            message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        )
        if oneof != field_oneof:
            if oneof is not None:
                yield f"{indent}  }}"
            if field_oneof is not None:
                yield f"{indent}  oneof {field_oneof} {{"
            oneof = field_oneof
        yield indent + ("    " if oneof else "  ") + field_line(field, message, full_name)
    if oneof is not None:
        yield f"{indent}  }}"
    yield f"{indent}}}"


def field_line(field: FieldDescriptorProto, message: DescriptorProto, full_name: str) -> str:
    entries = {
        f"{full_name}.{nested.name}": nested
        for nested in message.nested_type
        if nested.options.map_entry
    }
    if field.type_name in entries:
        key, value = entries[field.type_name].field
        return f"map<{type_name(key, full_name)}, {type_name(value, full_name)}> {field.name} = {field.number};"
    repeated = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    return f"{repeated}{type_name(field, full_name)} {field.name} = {field.number};"


def type_name(field: FieldDescriptorProto, scope: str) -> str:
    """As it is written in the message `scope`."""
    if field.type_name:
        return field.type_name.removeprefix(f"{scope}.").removeprefix(f".{COMPILED.package}.")
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def enum_lines(enum: EnumDescriptorProto, indent: str) -> Iterator[str]:
    yield f"{indent}enum {enum.name} {{"
    for value in enum.value:
        yield f"{indent}  {value.name} = {value.number};"
    yield f"{indent}}}"


def test_the_service_has_the_methods_of_the_proto_file(repository: Repository) -> None:
    (service,) = COMPILED.service
    handlers = Service(Inference(repository, Settings())).handlers()
    assert f"{COMPILED.package}.{service.name}" == SERVICE
    methods = {method.name for method in service.method}
    assert methods.isdisjoint(UNSUPPORTED_METHODS)
    assert methods.union(UNSUPPORTED_METHODS) == handlers.keys()
    for method in service.method:
        implemented: grpc.RpcMethodHandler = handlers[method.name]
        # A unary method decides itself whether it reads its one message.
        assert implemented.request_streaming
        assert implemented.response_streaming == method.server_streaming


def triton_descriptor(name: str) -> Any:
    outer_name, *inner_names = name.split(".")
    messages = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    descriptor = messages[outer_name]
    for inner_name in inner_names:
        descriptor = descriptor.nested_types_by_name[inner_name]
    return descriptor


def describe(field: Any) -> tuple[Any, ...]:
    inner = field.message_type or field.enum_type
    type_name = inner.full_name if inner else ""
    oneof = field.containing_oneof.name if field.containing_oneof else ""
    return (
        field.name,
        field.number,
        field.type,
        field.is_repeated,
        field.is_packed,
        oneof,
        type_name,
    )


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_is_triton_s(name: str) -> None:
    ours = CLASSES[name].DESCRIPTOR
    expected = triton_descriptor(name)
    assert ours.full_name == expected.full_name
    for field in ours.fields:
        expected_field = expected.fields_by_name[field.name]
        assert describe(field) == describe(expected_field)
        if field.message_type and field.message_type.GetOptions().map_entry:
            entry_fields = [describe(entry_field) for entry_field in field.message_type.fields]
            assert entry_fields == [
                describe(entry_field) for entry_field in expected_field.message_type.fields
            ]


def values_of(enum: Any) -> list[tuple[int, str]]:
    return [(value.number, value.name) for value in enum.values]


def test_every_enumeration_is_triton_s() -> None:
    file = CLASSES["ModelConfig"].DESCRIPTOR.file
    assert list(file.enum_types_by_name) == ["DataType"]
    data_type = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"]
    assert values_of(file.enum_types_by_name["DataType"]) == values_of(data_type)
    input_format = triton_descriptor("ModelInput").enum_types_by_name["Format"]
    assert values_of(CLASSES["ModelInput"].DESCRIPTOR.enum_types_by_name["Format"]) == values_of(
        input_format
    )


@pytest.mark.parametrize(
    "name", ["ModelInferRequest", "ModelInferResponse", "InferTensorContents", "InferParameter"]
)
def test_messages_of_an_inference_lack_nothing(name: str) -> None:
    field_names = [field.name for field in CLASSES[name].DESCRIPTOR.fields]
    assert field_names == [field.name for field in triton_descriptor(name).fields]


@pytest.mark.parametrize("first", ["deploy_rnn.serving.grpc.messages", "tritonclient.grpc"])
def test_other_packages_with_the_same_messages(first: str) -> None:
    """Each registers `inference.ModelInferRequest`; whichever is imported first, neither is in the other's way."""
    second = {"tritonclient.grpc", "deploy_rnn.serving.grpc.messages"} - {first}
    code = (
        f"import {first}, {second.pop()}\n"
        "from deploy_rnn.serving.grpc.messages import CLASSES\n"
        "from google.protobuf import descriptor_pool\n"
        "from tritonclient.grpc import service_pb2\n"
        "name = 'inference.ModelInferRequest'\n"
        "default = descriptor_pool.Default().FindMessageTypeByName(name)\n"
        "assert default is service_pb2.ModelInferRequest.DESCRIPTOR\n"
        "assert default is not CLASSES['ModelInferRequest'].DESCRIPTOR\n"
        "message = CLASSES['ModelInferRequest'](model_name='m')\n"
        "assert service_pb2.ModelInferRequest.FromString(message.SerializeToString()).model_name == 'm'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
