"""`OnnxFile`: what an .onnx file is, whoever wrote it. Only onnx is needed to read it, and nothing in it is run."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from deploy_rnn.errors import LoadError
from deploy_rnn.metadata import PREFIX, FileMetadata
from deploy_rnn.tensor_spec import ANY_SHAPE, DTYPES, IndexRanges, Ranges, TensorSpec

from .recurrent_nodes import RecurrentFacts

SHOWN_TYPES = 10
"""How many node types `print` names; the rest are counted together."""


@dataclass(frozen=True)
class OnnxFile:
    """An .onnx file.

    Attributes:
        path: the file.
        form: how its recurrent layers are written, if deploy-rnn wrote them.
        lengths: inputs that hold the lengths of the rows -> the axis, or the number of steps, that limits them.
        states: of a streaming file, inputs that carry a state from chunk to chunk -> the outputs that return it.
        time: of a streaming file, inputs -> their time axis.
        ranges: dynamic axes that may not have every size -> the sizes that they may have.
        index_ranges: inputs that are indices into a table, as of an embedding -> what they may be.
        row_ends: how ONNX's own operators are told where rows end: "held", or "sequence_lens" of lengths that the model
            computes. None for `sequence_lens` of an input, and where there are none.
        recurrent: what is known of ONNX's own RNN, GRU and LSTM in it.
        precision: "int8" if its recurrent layers multiply numbers of eight bits, "float16" if its weights are stored
            in 16 bits; None if nothing is said.
        int8_layers: in "int8", which layers are of eight bits besides the recurrent ones.
        int8_products: in "int8", "state" if the recurrent layers multiply their inputs in float32; None for "all".
        producer: the name and version of the program that wrote it.
        opsets: domain -> version; "" is the domain of ONNX's own operators.
        inputs: what it takes; a dynamic axis has a name.
        outputs: what it returns.
        nodes: number of nodes in the main graph alone, as everything that deploy-rnn prints counts them.
        node_types: number of nodes of each type, the most frequent first; includes subgraphs and functions.
        file_bytes: size of the .onnx file alone.
        bytes: size on disk, external data files included.
        weight_bytes: size of its constant tensors.
        missing_data: files of external weights that are not there, or too short -> what is wrong.
        metadata: other properties that its writer noted.
    """

    path: str
    form: str | None
    lengths: Mapping[str, int | str]
    states: Mapping[str, str]
    time: Mapping[str, int]
    producer: str
    opsets: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: int
    node_types: Mapping[str, int]
    file_bytes: int
    bytes: int
    weight_bytes: int
    missing_data: Mapping[str, str]
    metadata: Mapping[str, str]
    ranges: Ranges = field(default_factory=dict)
    index_ranges: IndexRanges = field(default_factory=dict)
    row_ends: str | None = None
    recurrent: RecurrentFacts = field(default_factory=RecurrentFacts)
    precision: str | None = None
    int8_layers: Sequence[str] = ()
    int8_products: str | None = None

    @classmethod
    def read(cls, path: str | Path, *, shown_as: Path | None = None) -> "OnnxFile":
        """Read a file; external data is measured, not read.

        Args:
            path: the file.
            shown_as: the path to report, for a file that still has a temporary name; None for `path`.

        Raises:
            LoadError: the file is missing or is not ONNX, or deploy-rnn's metadata in it is damaged.
        """
        path = Path(path)
        shown_as = shown_as or path
        model = _parse(path)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        metadata = _read_metadata(properties, shown_as)
        tensors = [tensor for graph in _graphs(model.graph) for tensor in _constants(graph)]
        file_bytes = path.stat().st_size
        external_bytes = sum(file.stat().st_size for file in _external_files(path.parent, tensors))
        # Files of an IR version below 4 list their weights among the inputs.
        weight_names = {tensor.name for tensor in model.graph.initializer}
        return cls(
            path=str(shown_as),
            form=metadata.form,
            lengths=metadata.lengths,
            states=metadata.states,
            time=metadata.time,
            producer=f"{model.producer_name} {model.producer_version}".strip(),
            opsets={entry.domain: entry.version for entry in model.opset_import},
            inputs=tuple(
                _spec(value) for value in model.graph.input if value.name not in weight_names
            ),
            outputs=tuple(_spec(value) for value in model.graph.output),
            nodes=len(model.graph.node),
            node_types=dict(Counter(_type_name(node) for node in _nodes(model)).most_common()),
            file_bytes=file_bytes,
            bytes=file_bytes + external_bytes,
            weight_bytes=sum(_tensor_bytes(tensor) for tensor in tensors),
            missing_data=_missing_data(path.parent, tensors),
            metadata={
                key: value for key, value in properties.items() if not key.startswith(PREFIX)
            },
            ranges=metadata.ranges,
            index_ranges=metadata.index_ranges,
            row_ends=metadata.row_ends,
            recurrent=RecurrentFacts.of(model, _nodes(model)),
            precision=metadata.precision,
            int8_layers=metadata.int8_layers,
            int8_products=metadata.int8_products,
        )

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return Path(self.path).name

    @property
    def products_note(self) -> str:
        """What stands behind the precision of a file if not all its products are of eight bits."""
        return f" (products: {self.int8_products})" if self.int8_products else ""

    @property
    def inner_nodes(self) -> int:
        """Number of the nodes in loops, branches and functions."""
        return sum(self.node_types.values()) - self.nodes

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators; 0 if the file declares none."""
        return self.opsets.get("", self.opsets.get("ai.onnx", 0))

    @property
    def dynamic(self) -> dict[str, tuple[str, ...]]:
        """Name of each dynamic axis -> where it occurs, such as "input axis 1"."""
        places: dict[str, tuple[str, ...]] = {}
        for spec in (*self.inputs, *self.outputs):
            for axis, size in enumerate(spec.shape):
                if isinstance(size, str) and spec.shape != ANY_SHAPE:
                    places[size] = (*places.get(size, ()), f"{spec.name} axis {axis}")
        return places

    @property
    def dynamic_inputs(self) -> list[str]:
        """The names of the dynamic axes of the inputs."""
        specs = [spec for spec in self.inputs if spec.shape != ANY_SHAPE]
        sizes = [size for spec in specs for size in spec.shape if isinstance(size, str)]
        return list(dict.fromkeys(sizes))

    def input(self, name: str) -> TensorSpec:
        """The input of that name."""
        return next(spec for spec in self.inputs if spec.name == name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": self.path,
            "form": self.form,
            "lengths": self.lengths,
            "states": self.states,
            "ranges": self.ranges,
            "index_ranges": self.index_ranges,
            "row_ends": self.row_ends,
            "precision": self.precision,
            "int8_layers": list(self.int8_layers),
            "int8_products": self.int8_products,
            "sequence_lens": sorted(self.recurrent.sequence_lens),
            "activations": sorted(self.recurrent.activations),
            "producer": self.producer,
            "opsets": self.opsets,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "dynamic": self.dynamic,
            "node_types": self.node_types,
            "bytes": self.bytes,
            "weight_bytes": self.weight_bytes,
            "missing_data": self.missing_data,
            "metadata": self.metadata,
            "nodes": self.nodes,
            "inner_nodes": self.inner_nodes,
        }

    def __str__(self) -> str:
        opsets = ", ".join(f"{domain} {version}".strip() for domain, version in self.opsets.items())
        lines = [f"{self.path}: {self._shown_form()}, {self.bytes / 1e3:,.0f} kB, opset {opsets}"]
        lines += [f"  input    {spec}" for spec in self.inputs]
        lines += [f"  output   {spec}" for spec in self.outputs]
        lines += [
            f"  dynamic  {name}: {', '.join(places)}" for name, places in self.dynamic.items()
        ]
        lines += [f"  sizes    {name}: {sizes}" for name, sizes in self.ranges.items()]
        lines += [
            f"  indices  {name}: {limits}, into a table"
            for name, limits in self.index_ranges.items()
        ]
        lines += [
            f"  lengths  {name}: at most {limit} each" for name, limit in self.lengths.items()
        ]
        lines += [
            f"  state    {name}: from {output} of the chunk before"
            for name, output in self.states.items()
        ]
        lines += [f"  {key}: {value}" for key, value in self.metadata.items()]
        lines.append(f"  weights  {self.weight_bytes:,} bytes")
        lines += [f"  missing  {name}: {fault}" for name, fault in self.missing_data.items()]
        lines.append(f"  producer {self.producer or 'unknown'}")
        within = f", and {self.inner_nodes} in loops and branches" if self.inner_nodes else ""
        lines.append(f"  nodes    {self.nodes}{within}{self._list_types()}")
        return "\n".join(lines)

    def _shown_form(self) -> str:
        if self.form is None:
            return "not by deploy-rnn"
        if self.precision is not None:
            return f"{self.form}, {self.precision}{self.products_note}"
        return self.form if self.row_ends is None else f"{self.form} (row ends: {self.row_ends})"

    def _list_types(self) -> str:
        if not self.node_types:
            return ""
        counts = list(self.node_types.items())
        shown = [f"{count} {name}" for name, count in counts[:SHOWN_TYPES]]
        hidden = [count for _, count in counts[SHOWN_TYPES:]]
        if hidden:
            shown.append(f"{sum(hidden)} of {len(hidden)} other types")
        return f": {', '.join(shown)}"


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise LoadError(f"{str(path)!r} is a folder; give an .onnx file.")
    if not path.is_file():
        raise LoadError(f"there is no file {str(path)!r}.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:  # protobuf's DecodeError, from a module without types
        raise LoadError(f"{str(path)!r} is not an ONNX file.") from None
    # A few bytes of anything parse as some message.
    if not model.HasField("graph") or not model.opset_import:
        raise LoadError(f"{str(path)!r} is not an ONNX file: it has no graph, or no opset.")
    return model


def _read_metadata(properties: Mapping[str, str], path: Path) -> FileMetadata:
    try:
        return FileMetadata.of(properties)
    except (ValueError, TypeError):
        raise LoadError(
            f"{str(path)!r} has metadata of deploy-rnn that is not a JSON object."
        ) from None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those within its nodes."""
    yield graph
    for node in graph.node:
        yield from _subgraphs(node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from _graphs(attribute.g)
        for graph in attribute.graphs:
            yield from _graphs(graph)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph, its subgraphs and the model's functions."""
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for graph in _subgraphs(node):
                yield from graph.node


def _type_name(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The constant tensors of one graph: initializers, and tensors within attributes, as of Constant nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    if tensor.raw_data or tensor.string_data:
        return len(tensor.raw_data) + sum(len(text) for text in tensor.string_data)
    external = {entry.key: entry.value for entry in tensor.external_data}
    if external.get("length", "").isdecimal():
        return int(external["length"])
    if tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return 0
    item_bytes: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    elements: int = math.prod(tensor.dims)
    return item_bytes * elements


def _missing_data(folder: Path, tensors: Sequence[onnx.TensorProto]) -> dict[str, str]:
    """The files of external data that a run would lack. A path that leads out of the folder is not looked at."""
    needed_bytes: Counter[str] = Counter()
    for tensor in tensors:
        external = {entry.key: entry.value for entry in tensor.external_data}
        offset = external.get("offset", "")
        end = (int(offset) if offset.isdecimal() else 0) + _tensor_bytes(tensor)
        if "location" in external:
            name = external["location"]
            needed_bytes[name] = max(needed_bytes[name], end)
    faults = {}
    for name, needed in needed_bytes.items():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            faults[name] = "leads out of the folder of the file, and is not looked at"
        elif not path.is_file():
            faults[name] = "this file has the weights, and is not there"
        elif path.stat().st_size < needed:
            faults[name] = f"has {path.stat().st_size:,} bytes, the weights in it need {needed:,}"
    return faults


def _external_files(folder: Path, tensors: Sequence[onnx.TensorProto]) -> set[Path]:
    """The existing files of external data. A path that leads out of the folder is ignored."""
    files = set()
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                files.add((folder / entry.value).resolve())
    return {file for file in files if file.is_relative_to(folder.resolve()) and file.is_file()}


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    type_name = value.type.WhichOneof("value")
    if type_name != "tensor_type":
        return TensorSpec(value.name, (type_name or "unknown").removesuffix("_type"), ())
    tensor = value.type.tensor_type
    dtype = _dtype_name(tensor.elem_type)
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, ANY_SHAPE)
    return TensorSpec.of(value.name, dtype, _sizes(tensor.shape.dim))


def _dtype_name(element_type: int) -> str:
    # A file of a later ONNX may have an element type that this onnx does not know.
    if element_type not in onnx.TensorProto.DataType.values():
        return "unknown"
    name: str = onnx.TensorProto.DataType.Name(element_type).lower()
    return DTYPES.get(name, name)


def _sizes(dims: Iterable[onnx.TensorShapeProto.Dimension]) -> Iterator[int | str | None]:
    """A number for a fixed axis, a name for a dynamic one, None for a dynamic one without a name, or of size -1."""
    for dim in dims:
        is_fixed = dim.HasField("dim_value") and dim.dim_value >= 0
        yield dim.dim_value if is_fixed else dim.dim_param or None
