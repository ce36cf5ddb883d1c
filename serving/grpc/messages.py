"""The protobuf messages of the protocol, from oip.proto in its compiled form, oip.binpb.

They are in a descriptor pool of this module, not in the default one: there `tritonclient` and other packages register
the same names, and a second registration is an error.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from deploy_rnn.errors import InputError

SERVICE = "inference.GRPCInferenceService"


def _load_file() -> Any:
    """The descriptor of oip.proto."""
    compiled = resources.files(__package__).joinpath("oip.binpb").read_bytes()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(compiled).file
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindFileByName(file.name)


def _with_nested(descriptors: Iterable[Any]) -> Iterator[Any]:
    """Message descriptors and those nested in them, without the entries of maps."""
    for descriptor in descriptors:
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            yield from _with_nested(descriptor.nested_types)


def _load_classes() -> dict[str, Any]:
    file = _load_file()
    classes = {}
    for descriptor in _with_nested(file.message_types_by_name.values()):
        name = descriptor.full_name.removeprefix(f"{file.package}.")
        classes[name] = message_factory.GetMessageClass(descriptor)
    return classes


CLASSES: Mapping[str, Any] = MappingProxyType(_load_classes())
"""Message -> its class; the name of a nested message contains that of the message around it."""


def parse(name: str, data: bytes) -> Any:
    """
    Raises:
        InputError: `data` is not a message of that name.
    """
    try:
        return CLASSES[name].FromString(data)
    except DecodeError:
        raise InputError(f"the message is not a {name}.") from None
