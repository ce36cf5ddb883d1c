"""A bundle: a folder with one model as several graphs over one file of weights, and a manifest that lists them.

The manifest is the contract between export and serving (docs/bundle.md; its schema is bundle.schema.json). Neither
torch nor onnx is needed to read it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from deploy_rnn.errors import BundleError
from deploy_rnn.tensor_spec import Ranges, TensorSpec, read_ranges

VERSION = 2
"""Version of the manifest that this release writes. It reads this one and older ones."""

MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"


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
        precision: in which it computes, such as "float32".
        ranges: dynamic axes that may not have every size -> the sizes of a request that the graph is right for. Where
            the graph is for one number of steps, those of the steps are what may be padded to it.
    """

    file: str
    form: str
    steps: int | None
    nodes: int
    milliseconds: float
    precision: str
    ranges: Ranges = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From JSON. Raises: KeyError, TypeError, ValueError: other fields than these."""
        return cls(**{**fields, "ranges": read_ranges(fields.get("ranges", {}))})

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `ranges` only where there are some."""
        fields = asdict(self)
        if not self.ranges:
            del fields["ranges"]
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"graphs": [graph.to_dict() for graph in self.graphs]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the manifest of a bundle. One of an older version is returned as one of this version.

        Raises:
            BundleError: not a bundle, a manifest that cannot be read, or one of a later release.
        """
        path = Path(folder) / MANIFEST
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise BundleError(f"{str(folder)!r} is not a bundle: {MANIFEST} is missing.") from None
        except ValueError as error:
            raise BundleError(f"{str(path)!r} is not JSON: {error}.") from None
        version = fields.get("version") if isinstance(fields, dict) else None
        if not isinstance(version, int):
            raise BundleError(f"{str(path)!r} is not a manifest: `version` is missing.")
        # A later release may have changed any other field, so none of them is looked at.
        if version > VERSION:
            raise BundleError(
                f"{str(path)!r} has version {version}; this deploy-rnn reads up to {VERSION}: install a newer one."
            )
        try:
            if version == 1:
                fields = _from_version_1(fields)
            return cls._of(fields)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{str(path)!r} is not a manifest of version {version}: {error}."
            ) from None

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Self:
        parts = {
            "inputs": tuple(_tensor(tensor) for tensor in fields["inputs"]),
            "outputs": tuple(_tensor(tensor) for tensor in fields["outputs"]),
            "graphs": tuple(Graph.of(graph) for graph in fields["graphs"]),
        }
        return cls(**fields | parts)

    def check(self, folder: str | Path) -> None:
        """Raises: BundleError: a file that is missing, or is not the one that was written."""
        for name, expected in self.sha256.items():
            path = Path(folder) / name
            if not path.is_file():
                raise BundleError(f"{str(folder)!r} lacks {name!r}, which its manifest names.")
            actual = sha256(path)
            if actual != expected:
                raise BundleError(
                    f"{str(path)!r} is not the file that was exported: its sha256 is {actual[:12]}..., the manifest "
                    f"says {expected[:12]}...; export the bundle again."
                )


def _tensor(fields: dict[str, Any]) -> Tensor:
    return Tensor(**fields | {"shape": tuple(fields["shape"])})


def _from_version_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Version 1 has no precision: a graph then computed in its model's own, float32 or float64, as its outputs show."""
    dtypes = {str(tensor["dtype"]) for tensor in fields["outputs"]}
    float_dtypes = {dtype for dtype in dtypes if dtype.startswith("float")}
    precision = "float64" if float_dtypes == {"float64"} else "float32"
    graphs = [graph | {"precision": precision} for graph in fields["graphs"]]
    return fields | {"version": 2, "graphs": graphs}


def sha256(path: Path) -> str:
    """Return the digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
