"""`inspect`: what an .onnx file is, from anyone; read with onnx alone, and nothing in it is run."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from deploy_rnn.errors import LoadError
from deploy_rnn.tensor_spec import DTYPES, TensorSpec

from .metadata import PREFIX, FileMetadata

SHOWN = 10
"""Types of nodes that are shown; the rest are counted together."""


@dataclass(frozen=True)
class Inspection:
    """An .onnx file.

    Attributes:
        path: the file.
        form: how its recurrent layers are written, if deploy-rnn wrote them.
        lengths: inputs that are the lengths of the rows -> the axis, or the number of steps, that limits them.
        states: inputs that carry a state from chunk to chunk -> the outputs that give it.
        producer: what wrote it, and that one's version.
        opsets: domain -> version; "" is ONNX's own.
        inputs: what it takes; a dynamic axis has a name.
        outputs: what it gives.
        dynamic: name of a dynamic axis -> where it is, such as "input axis 1".
        node_types: how many nodes of each type, the most frequent first; those of subgraphs and functions count.
        bytes: size on disk, with the files of external data beside it.
        weight_bytes: size of its constant tensors.
        metadata: what else its writer noted.
    """

    path: str
    form: str | None
    lengths: Mapping[str, int | str]
    states: Mapping[str, str]
    producer: str
    opsets: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic: Mapping[str, tuple[str, ...]]
    node_types: Mapping[str, int]
    bytes: int
    weight_bytes: int
    metadata: Mapping[str, str]

    @property
    def nodes(self) -> int:
        return sum(self.node_types.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every field, and `nodes`."""
        return asdict(self) | {"nodes": self.nodes}

    def __str__(self) -> str:
        opsets = ", ".join(f"{domain} {version}".strip() for domain, version in self.opsets.items())
        lines = [f"{self.path}: {self.form or 'not by deploy-rnn'}, {self.bytes / 1e3:,.0f} kB, opset {opsets}"]
        lines += [f"  input    {spec}" for spec in self.inputs]
        lines += [f"  output   {spec}" for spec in self.outputs]
        lines += [f"  dynamic  {name}: {', '.join(where)}" for name, where in self.dynamic.items()]
        lines += [f"  lengths  {name}: at most {limit} each" for name, limit in self.lengths.items()]
        lines += [f"  state    {first}: from {last} of the chunk before" for first, last in self.states.items()]
        lines += [f"  {key}: {value}" for key, value in self.metadata.items()]
        lines += [f"  weights  {self.weight_bytes:,} bytes", f"  producer {self.producer or 'unknown'}"]
        return "\n".join([*lines, f"  nodes    {self.nodes}{self._shown_types()}"])

    def _shown_types(self) -> str:
        shown = [f"{count} {name}" for name, count in list(self.node_types.items())[:SHOWN]]
        if rest := list(self.node_types.values())[SHOWN:]:
            shown.append(f"{sum(rest)} of {len(rest)} other types")
        return f": {', '.join(shown)}" if shown else ""


def inspect(path: str | Path) -> Inspection:
    """Read an .onnx file; external data is measured, not read.

    Raises:
        LoadError: there is no such file, or it is not ONNX.
    """
    path = Path(path)
    model = _parsed(path)
    noted = {entry.key: entry.value for entry in model.metadata_props}
    metadata = _file_metadata(path, noted)
    graphs = list(_graphs(model.graph))
    stored = {tensor.name for tensor in model.graph.initializer}  # old files list weights among the inputs, too
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in stored)
    outputs = tuple(map(_spec, model.graph.output))
    tensors = [tensor for graph in graphs for tensor in _tensors(graph)]
    return Inspection(
        path=str(path),
        form=metadata.form,
        lengths=metadata.lengths,
        states=metadata.states,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opsets={entry.domain: entry.version for entry in model.opset_import},
        inputs=inputs,
        outputs=outputs,
        dynamic=_dynamic(*inputs, *outputs),
        node_types=dict(Counter(_type(node) for node in _nodes(model)).most_common()),
        bytes=path.stat().st_size + sum(each.stat().st_size for each in _external(path.parent, tensors)),
        weight_bytes=sum(map(_size, tensors)),
        metadata={key: value for key, value in noted.items() if not key.startswith(PREFIX)},
    )


def _parsed(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise LoadError(f"{str(path)!r} is a folder; give an .onnx file.")
    if not path.is_file():
        raise LoadError(f"there is no file {str(path)!r}.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:  # protobuf's DecodeError, of a module without types
        raise LoadError(f"{str(path)!r} is not an ONNX file.") from None
    if not model.HasField("graph") or not model.opset_import:  # any few bytes parse as some message
        raise LoadError(f"{str(path)!r} is not an ONNX file: it has no graph, or no opset.")
    return model


def _file_metadata(path: Path, properties: Mapping[str, str]) -> FileMetadata:
    try:
        metadata = FileMetadata.of(properties)
        return FileMetadata(metadata.form, dict(metadata.lengths), dict(metadata.states), dict(metadata.time))
    except (ValueError, TypeError):
        raise LoadError(f"{str(path)!r} has metadata of deploy-rnn that is no JSON object.") from None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those within its nodes."""
    yield graph
    for node in graph.node:
        yield from _inner(node)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graphs(graph)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for graph in _inner(node):
                yield from graph.node


def _type(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The constants of one graph: initializers, and the values of its Constant nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from (each.t for each in node.attribute if each.HasField("t"))


def _size(tensor: onnx.TensorProto) -> int:
    if tensor.raw_data or tensor.string_data:
        return len(tensor.raw_data) + sum(map(len, tensor.string_data))
    noted = {entry.key: entry.value for entry in tensor.external_data}
    if noted.get("length", "").isdecimal():
        return int(noted["length"])
    if tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return 0
    each: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    count: int = math.prod(tensor.dims)
    return each * count


def _external(folder: Path, tensors: list[onnx.TensorProto]) -> set[Path]:
    """The files of external data that are there, within the folder."""
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    files = {(folder / name).resolve() for name in names}
    return {each for each in files if each.is_relative_to(folder.resolve()) and each.is_file()}


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorSpec(value.name, (kind or "unknown").removesuffix("_type"), ())
    tensor = value.type.tensor_type
    known = onnx.TensorProto.DataType.values()
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type in known else "unknown"
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, DTYPES.get(dtype, dtype), ("...",))
    sizes = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
    return TensorSpec.of(value.name, DTYPES.get(dtype, dtype), sizes)


def _dynamic(*specs: TensorSpec) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                found.setdefault(size, []).append(f"{spec.name} axis {axis}")
    return {name: tuple(where) for name, where in found.items()}
