"""The protobuf messages of the protocol, in the syntax of protobuf, made when this module is imported.

They live in a pool of their own: `tritonclient` and other packages each register the same names in the default pool,
where a second registration is an error. Field numbers are Triton's (grpc_service.proto, model_config.proto), of which
this is the part that a server of recurrent models needs; what it lacks is skipped on reading, as protobuf does.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"

_METADATA_FIELDS = "string name = 1; string datatype = 2; repeated int64 shape = 3;"
_TENSOR_FIELDS = (
    "string name = 1; string datatype = 2; repeated int64 shape = 3; map<string, InferParameter> parameters = 4; "
    "InferTensorContents contents = 5;"
)
_NAMED = "string name = 1; string version = 2;"

MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live = 1;",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready = 1;",
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": "bool ready = 1;",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name = 1; string version = 2; repeated string extensions = 3;",
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse": (
        "string name = 1; repeated string versions = 2; string platform = 3; "
        "repeated ModelMetadataResponse.TensorMetadata inputs = 4; "
        "repeated ModelMetadataResponse.TensorMetadata outputs = 5;"
    ),
    "ModelMetadataResponse.TensorMetadata": _METADATA_FIELDS,
    "InferParameter": (
        "oneof parameter_choice { bool bool_param = 1; int64 int64_param = 2; string string_param = 3; "
        "double double_param = 4; uint64 uint64_param = 5; }"
    ),
    "InferTensorContents": (
        "repeated bool bool_contents = 1; repeated int32 int_contents = 2; repeated int64 int64_contents = 3; "
        "repeated uint32 uint_contents = 4; repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6; "
        "repeated double fp64_contents = 7; repeated bytes bytes_contents = 8;"
    ),
    "ModelInferRequest": (
        "string model_name = 1; string model_version = 2; string id = 3; map<string, InferParameter> parameters = 4; "
        "repeated ModelInferRequest.InferInputTensor inputs = 5; "
        "repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6; repeated bytes raw_input_contents = 7;"
    ),
    "ModelInferRequest.InferInputTensor": _TENSOR_FIELDS,
    "ModelInferRequest.InferRequestedOutputTensor": "string name = 1; map<string, InferParameter> parameters = 2;",
    "ModelInferResponse": (
        "string model_name = 1; string model_version = 2; string id = 3; map<string, InferParameter> parameters = 4; "
        "repeated ModelInferResponse.InferOutputTensor outputs = 5; repeated bytes raw_output_contents = 6;"
    ),
    "ModelInferResponse.InferOutputTensor": _TENSOR_FIELDS,
    "ModelStreamInferResponse": "string error_message = 1; ModelInferResponse infer_response = 2;",
    "ModelConfigRequest": _NAMED,
    "ModelConfigResponse": "ModelConfig config = 1;",
    "ModelStatisticsRequest": _NAMED,
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats = 1;",
    "StatisticDuration": "uint64 count = 1; uint64 ns = 2;",
    "InferStatistics": (
        "StatisticDuration success = 1; StatisticDuration fail = 2; StatisticDuration queue = 3; "
        "StatisticDuration compute_input = 4; StatisticDuration compute_infer = 5; "
        "StatisticDuration compute_output = 6; StatisticDuration cache_hit = 7; StatisticDuration cache_miss = 8;"
    ),
    "InferBatchStatistics": (
        "uint64 batch_size = 1; StatisticDuration compute_input = 2; StatisticDuration compute_infer = 3; "
        "StatisticDuration compute_output = 4;"
    ),
    "ModelStatistics": (
        "string name = 1; string version = 2; uint64 last_inference = 3; uint64 inference_count = 4; "
        "uint64 execution_count = 5; InferStatistics inference_stats = 6; "
        "repeated InferBatchStatistics batch_stats = 7;"
    ),
    "ModelRepositoryParameter": (
        "oneof parameter_choice { bool bool_param = 1; int64 int64_param = 2; string string_param = 3; "
        "bytes bytes_param = 4; }"
    ),
    "RepositoryIndexRequest": "string repository_name = 1; bool ready = 2;",
    "RepositoryIndexResponse": "repeated RepositoryIndexResponse.ModelIndex models = 1;",
    "RepositoryIndexResponse.ModelIndex": "string name = 1; string version = 2; string state = 3; string reason = 4;",
    "RepositoryModelLoadRequest": (
        "string repository_name = 1; string model_name = 2; map<string, ModelRepositoryParameter> parameters = 3;"
    ),
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": (
        "string repository_name = 1; string model_name = 2; map<string, ModelRepositoryParameter> parameters = 3;"
    ),
    "RepositoryModelUnloadResponse": "",
    "ModelConfig": (
        "string name = 1; string platform = 2; ModelVersionPolicy version_policy = 3; int32 max_batch_size = 4; "
        "repeated ModelInput input = 5; repeated ModelOutput output = 6; string backend = 17; "
        "oneof scheduling_choice { ModelDynamicBatching dynamic_batching = 11; "
        "ModelSequenceBatching sequence_batching = 13; } "
        "ModelTransactionPolicy model_transaction_policy = 19;"
    ),
    "ModelInput": (
        "string name = 1; DataType data_type = 2; ModelInput.Format format = 3; repeated int64 dims = 4; "
        "bool optional = 8;"
    ),
    "ModelOutput": "string name = 1; DataType data_type = 2; repeated int64 dims = 3;",
    "ModelVersionPolicy": "oneof policy_choice { ModelVersionPolicy.Latest latest = 1; }",
    "ModelVersionPolicy.Latest": "uint32 num_versions = 1;",
    "ModelDynamicBatching": "uint64 max_queue_delay_microseconds = 2;",
    "ModelSequenceBatching": (
        "uint64 max_sequence_idle_microseconds = 1; "
        "oneof strategy_choice { ModelSequenceBatching.StrategyOldest oldest = 4; }"
    ),
    "ModelSequenceBatching.StrategyOldest": (
        "int32 max_candidate_sequences = 1; uint64 max_queue_delay_microseconds = 3;"
    ),
    "ModelTransactionPolicy": "bool decoupled = 1;",
}
"""Message -> its fields; a nested message is named with the one around it."""

ENUMS = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
        "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "ModelInput.Format": ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"),
}  # fmt: skip
"""Enumeration -> its names, which count from 0."""

_FIELD = re.compile(
    r"oneof (?P<oneof>\w+) \{|(?P<close>\})|"
    r"(?P<repeated>repeated )?(?:map<string, (?P<map>\w+)>|(?P<type>[\w.]+)) (?P<name>\w+) = (?P<number>\d+);"
)
_SCALARS = ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")

Field = descriptor_pb2.FieldDescriptorProto
Message = descriptor_pb2.DescriptorProto


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="deploy_rnn/oip.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in MESSAGES.items():
        outer, _, own = name.rpartition(".")
        made[name] = (made[outer].nested_type if outer else file.message_type).add(name=own)
        _add_fields(made[name], name, fields)
    for name, values in ENUMS.items():
        outer, _, own = name.rpartition(".")
        enum = (made[outer] if outer else file).enum_type.add(name=own)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    return file


def _add_fields(message: Any, full_name: str, fields: str) -> None:
    in_oneof = False
    for found in _FIELD.finditer(fields):
        if found["oneof"]:
            message.oneof_decl.add(name=found["oneof"])
            in_oneof = True
        elif found["close"]:
            in_oneof = False
        else:
            _add_field(message, full_name, found, in_oneof=in_oneof)


def _add_field(message: Any, full_name: str, found: re.Match[str], *, in_oneof: bool) -> None:
    repeated = found["repeated"] or found["map"]
    label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
    field = message.field.add(name=found["name"], number=int(found["number"]), label=label)
    if found["map"]:
        entry = _add_entry(message, found)
        _set_type(field, f"{full_name}.{entry}")
    else:
        _set_type(field, found["type"])
    if in_oneof:
        field.oneof_index = len(message.oneof_decl) - 1


def _add_entry(message: Any, found: re.Match[str]) -> str:
    """A map is a repeated message of key and value."""
    entry = message.nested_type.add(name=f"{found['name'].title().replace('_', '')}Entry")
    entry.options.map_entry = True
    _add_fields(entry, entry.name, f"string key = 1; {found['map']} value = 2;")
    return str(entry.name)


def _set_type(field: Any, kind: str) -> None:
    if kind in _SCALARS:
        field.type = Field.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type = Field.TYPE_ENUM if kind in ENUMS else Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    found = (pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in MESSAGES)
    return dict(zip(MESSAGES, map(message_factory.GetMessageClass, found), strict=True))


CLASSES: Mapping[str, Any] = MappingProxyType(_classes())
"""Message -> its class."""
