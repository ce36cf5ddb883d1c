"""A bundle: a folder with one model as several graphs over one file of weights, and a manifest that lists them.

The manifest is the contract between export and serving (docs/bundle.md; its schema is bundle.schema.json). Neither
torch nor onnx is needed to read it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Self

from deploy_rnn.bundle_files import MANIFEST as MANIFEST
from deploy_rnn.bundle_files import (
    hash_file,
    read_file,
    read_manifest_bytes,
    read_settled,
)
from deploy_rnn.errors import BundleError
from deploy_rnn.json_fields import FieldError, JsonField
from deploy_rnn.plain_files import hash_plain, is_plain
from deploy_rnn.tensor_spec import Ranges, TensorSpec, read_ranges

VERSION = 2
"""Version of the manifest that this release writes. It reads this one and older ones."""

WEIGHTS = "weights.bin"

DTYPES = frozenset(
    {
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "bfloat16", "float16", "float32", "float64",
    }
)  # fmt: skip
FORMS = frozenset({"unrolled", "scan", "native"})
PRECISIONS = frozenset({"float32", "float64", "float16", "int8"})


@dataclass(frozen=True)
class Tensor(TensorSpec):
    """An input or output, the same in all graphs of a bundle. A dynamic axis has a name, such as "B" or "T".

    Attributes:
        batch: the batch axis; None if there is none.
        time: the time axis; None if there is none.
    """

    batch: int | None = None
    time: int | None = None


@dataclass(frozen=True)
class Graph:
    """One .onnx file of a bundle.

    Attributes:
        file: its name in the folder.
        form: how its recurrent layers are written.
        steps: the number of steps that it is for; None for any.
        nodes: the number of its nodes.
        milliseconds: median time of one run of the example in onnxruntime on the CPU, where it was exported.
        precision: "float32" or "float64", in which it computes; "float16", in which it stores its weights; or "int8",
            of the products of its recurrent layers.
        ranges: dynamic axes that may not have every size -> the sizes of a request that the graph is right for. Where
            the graph is for one number of steps, those of the steps are what may be padded to it.
        row_ends: how ONNX's own operators are told where rows end: "held", or "sequence_lens" of lengths that the model
            computes. None for `sequence_lens` of an input, and where there are none.
    """

    file: str
    form: str
    steps: int | None
    nodes: int
    milliseconds: float
    precision: str
    ranges: Ranges = field(default_factory=dict, hash=False)
    row_ends: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `ranges` and `row_ends` only where there are some."""
        fields = asdict(self)
        for name in ("ranges", "row_ends"):
            if not fields[name]:
                del fields[name]
        return fields


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        version: of the manifest.
        name: of the model.
        producer: who wrote it, such as "deploy-rnn 0.1.0".
        opset: version of the ONNX operators.
        inputs, outputs: of every graph.
        lengths: inputs that are the lengths of the rows -> the axis that limits them.
        states: inputs that carry a state from chunk to chunk -> the outputs that give it.
        graphs: the .onnx files.
        sha256: every file but the manifest -> its digest in hexadecimal.
    """

    version: int
    name: str
    producer: str
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    lengths: Mapping[str, int | str]
    states: Mapping[str, str]
    graphs: tuple[Graph, ...]
    sha256: Mapping[str, str]

    def __str__(self) -> str:
        lines = [
            f"{self.name}: a bundle of {len(self.graphs)} graphs, opset {self.opset}, by {self.producer}"
        ]
        if len(self.precisions) > 1:
            lines.append(f"  precisions: {', '.join(self.precisions)}")
        lines += [f"  input   {tensor}" for tensor in self.inputs]
        lines += [f"  output  {tensor}" for tensor in self.outputs]
        lines += [f"  lengths {name}: at most {limit} each" for name, limit in self.lengths.items()]
        lines += [
            f"  state   {first}: from {last} of the previous chunk"
            for first, last in self.states.items()
        ]
        for graph in self.graphs:
            steps = "any number of steps" if graph.steps is None else f"{graph.steps} steps"
            lines.append(
                f"  {graph.file}: {graph.form}, {graph.precision}, {steps}, {graph.nodes} nodes, "
                f"{graph.milliseconds:.3g} ms"
            )
            lines += [f"    sizes {name}: {sizes}" for name, sizes in graph.ranges.items()]
        return "\n".join(lines)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of the graphs, each once, in their order."""
        return tuple(dict.fromkeys(graph.precision for graph in self.graphs))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"graphs": [graph.to_dict() for graph in self.graphs]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the manifest of a bundle. One of an older version is returned as one of this version.

        Raises:
            BundleError: not a bundle, a manifest that cannot be read, or one of a later release. A field that is
                missing or wrong is named.
        """
        path = Path(folder) / MANIFEST
        data = read_manifest_bytes(Path(folder))
        try:
            root = JsonField.parse(data)
        except ValueError as error:
            raise BundleError(f"{str(path)!r} is not JSON: {error}.") from None
        try:
            version = _read_version(root)
        except FieldError as error:
            raise BundleError(f"{str(path)!r} is not a manifest: {error}.") from None
        # A later release may have changed any other field, so none of them is looked at.
        if version > VERSION:
            raise BundleError(
                f"{str(path)!r} has version {version}; this deploy-rnn reads up to {VERSION}: install a newer one."
            )
        try:
            return cls._of(root, version)
        except FieldError as error:
            raise BundleError(
                f"{str(path)!r} is not a manifest of version {version}: {error}."
            ) from None

    @classmethod
    def _of(cls, root: JsonField, version: int) -> Self:
        """From JSON. Raises: FieldError: a field that is missing, unknown or wrong."""
        fields = root.fields([field.name for field in dataclass_fields(cls)])
        inputs = _read_tensors(fields["inputs"])
        outputs = _read_tensors(fields["outputs"])
        # A graph of version 1 has no precision: it computes in that of its weights.
        precision = weights_precision(outputs.values()) if version == 1 else None
        sha256 = _read_digests(fields["sha256"])
        return cls(
            version=VERSION,
            name=fields["name"].text(),
            producer=fields["producer"].text(),
            opset=fields["opset"].whole_number(1),
            inputs=tuple(inputs.values()),
            outputs=tuple(outputs.values()),
            lengths=_read_lengths(fields["lengths"], inputs),
            states=_read_states(fields["states"], inputs, outputs),
            graphs=_read_graphs(fields["graphs"], sha256, precision),
            sha256=sha256,
        )

    def check(self, folder: str | Path) -> None:
        """Check that all files are those that were exported; none of them is kept in memory.

        Raises:
            BundleError: a file that is missing, is not the one that was written, or cannot be read.
        """
        for name in self.sha256:
            self.check_file(folder, name)

    def check_file(self, folder: str | Path, name: str) -> None:
        """Check one file, as `check` does all."""
        self._compare(folder, name, hash_file(Path(folder), name))

    def read_file(
        self, folder: str | Path, name: str, *, most: int | None = None, keep: int | None = None
    ) -> memoryview:
        """Read one file, and check what was read.

        Args:
            folder: the bundle.
            name: of a file that `sha256` lists.
            most: how many bytes it may have; None for any number.
            keep: how many bytes to return, from its beginning; all are checked. None for all.

        Raises:
            BundleError: as for `check`; or it is too large.
        """
        file = read_file(Path(folder), name, most, keep)
        self._compare(folder, name, file.sha256)
        return file.data

    def _compare(self, folder: str | Path, name: str, digest: str) -> None:
        expected = self.sha256[name]
        if digest != expected:
            # Its own digest would tell something of a file that a link leads to.
            raise BundleError(
                f"{str(Path(folder) / name)!r} is not the file that was exported: its sha256 is not that of the "
                f"manifest, {expected[:12]}...; export the bundle again."
            )


def checked_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a bundle, and check all its files.

    Raises:
        BundleError: as for `Manifest.read` and `Manifest.check`.
    """

    def read(target: Path) -> Manifest:
        manifest = Manifest.read(target)
        manifest.check(target)
        return manifest

    return read_settled(folder, read)


def sha256(path: Path) -> str:
    """Return the digest of a file, in hexadecimal. Raises: OSError: it cannot be read."""
    return hash_plain(path.parent, path.name)


def _read_version(root: JsonField) -> int:
    if not isinstance(root.value, dict) or "version" not in root.value:
        raise FieldError("`version` is missing")
    return JsonField(root.value["version"], "version").whole_number(1)


def _read_tensors(field: JsonField) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for item in field.items():
        tensor = _read_tensor(item)
        if tensor.name in tensors:
            JsonField(tensor.name, f"{item.place}.name").fail(
                "another name than that of the others"
            )
        tensors[tensor.name] = tensor
    return tensors


def _read_tensor(field: JsonField) -> Tensor:
    fields = field.fields(("name", "dtype", "shape", "batch", "time"))
    shape = tuple(item.name_or_number(least=0) for item in fields["shape"].items())

    def read_axis(axis: JsonField) -> int:
        if not shape:
            axis.fail("null, as `shape` has no axes")
        return axis.whole_number(0, len(shape) - 1)

    batch = fields["batch"].or_none(read_axis)
    time_axis = fields["time"].or_none(read_axis)
    if time_axis is not None and time_axis == batch:
        fields["time"].fail("another axis than `batch`")
    return Tensor(fields["name"].text(), fields["dtype"].choice(DTYPES), shape, batch, time_axis)


def _read_lengths(field: JsonField, inputs: Mapping[str, Tensor]) -> dict[str, int | str]:
    lengths: dict[str, int | str] = {}
    for name, limit in field.entries().items():
        _check_name(name, inputs, field.place, "an input")
        if not inputs[name].dtype.startswith(("int", "uint")):
            JsonField(name, f"a key of {field.place}").fail("an input of whole numbers")
        lengths[name] = limit.name_or_number(least=1)
    return lengths


def _read_states(
    field: JsonField, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> dict[str, str]:
    states: dict[str, str] = {}
    for name, output in field.entries().items():
        _check_name(name, inputs, field.place, "an input")
        first, last = inputs[name], outputs.get(output.text())
        if last is None:
            output.fail("the name of an output")
        if (first.dtype, len(first.shape)) != (last.dtype, len(last.shape)):
            output.fail(f"an output of the dtype of `{name}`, and with as many axes")
        if last.name in states.values():
            output.fail("an output that gives no other state")
        states[name] = last.name
    return states


def _check_name(name: str, tensors: Mapping[str, Tensor], place: str, what: str) -> None:
    if name not in tensors:
        JsonField(name, f"a key of {place}").fail(f"the name of {what}")


def _read_digests(field: JsonField) -> dict[str, str]:
    digests: dict[str, str] = {}
    for name, digest in field.entries().items():
        if not is_plain(name) or name == MANIFEST:
            JsonField(name, f"a key of {field.place}").fail(
                "the plain name of a file in the folder, other than the manifest"
            )
        text = digest.text()
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            digest.fail("64 hexadecimal digits")
        digests[name] = text
    return digests


def _read_graphs(
    field: JsonField, sha256: Mapping[str, str], precision: str | None
) -> tuple[Graph, ...]:
    graphs: list[Graph] = []
    for item in field.items(least=1):
        graph = _read_graph(item, sha256, precision)
        if graph.file in [other.file for other in graphs]:
            JsonField(graph.file, f"{item.place}.file").fail("another file than that of the others")
        graphs.append(graph)
    return tuple(graphs)


def _read_graph(field: JsonField, sha256: Mapping[str, str], precision: str | None) -> Graph:
    """`precision`: that of a manifest of version 1, whose graphs have none."""
    names = ["file", "form", "steps", "nodes", "milliseconds"]
    if precision is None:
        names.append("precision")
    fields = field.fields(names, optional=["ranges", "row_ends"])
    file = fields["file"].text()
    if file not in sha256:
        fields["file"].fail("the name of a file that `sha256` lists")
    return Graph(
        file=file,
        form=fields["form"].choice(FORMS),
        steps=fields["steps"].or_none(_read_positive),
        nodes=fields["nodes"].whole_number(0),
        milliseconds=fields["milliseconds"].number(),
        precision=precision or fields["precision"].choice(PRECISIONS),
        ranges=read_ranges(fields["ranges"]) if "ranges" in fields else {},
        row_ends=fields["row_ends"].text() if "row_ends" in fields else None,
    )


def _read_positive(field: JsonField) -> int:
    return field.whole_number(1)


def weights_precision(outputs: Iterable[TensorSpec]) -> str:
    """Return the precision of a graph that does not round: that of its weights, "float32" or "float64", as its outputs
    show."""
    dtypes = {tensor.dtype for tensor in outputs}
    float_dtypes = {dtype for dtype in dtypes if dtype.startswith("float")}
    return "float64" if float_dtypes == {"float64"} else "float32"
