"""A bundle: a folder with one model as several graphs over one file of weights, and a manifest that says what is in it.

The manifest is the contract between export and serving (docs/bundle.md; its schema is docs/bundle.schema.json). Neither
torch nor onnx is needed to read it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from deploy_rnn.errors import BundleError
from deploy_rnn.tensor_spec import TensorSpec

VERSION = 1
"""Of the manifest that this release writes. It reads this one and older ones."""

MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"


@dataclass(frozen=True)
class Tensor(TensorSpec):
    """An input or output, as all graphs of a bundle have it; "B" and "T" are what its dynamic axes are called.

    Attributes:
        batch: the axis of the rows; None if it has none.
        time: the axis of the steps; likewise.
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
        nodes: how many it has.
        milliseconds: median of one run of the example in onnxruntime on the CPU, where it was made.
    """

    file: str
    form: str
    steps: int | None
    nodes: int
    milliseconds: float


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
        lines = [f"{self.name}: a bundle of {len(self.graphs)} graphs, opset {self.opset}, by {self.producer}"]
        lines += [f"  input   {each}" for each in self.inputs]
        lines += [f"  output  {each}" for each in self.outputs]
        lines += [f"  lengths {name}: at most {limit} each" for name, limit in self.lengths.items()]
        lines += [f"  state   {first}: from {last} of the chunk before" for first, last in self.states.items()]
        for graph in self.graphs:
            steps = "any number of steps" if graph.steps is None else f"{graph.steps} steps"
            lines.append(f"  {graph.file}: {graph.form}, {steps}, {graph.nodes} nodes, {graph.milliseconds:.3g} ms")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The manifest of a bundle.

        Raises:
            BundleError: no bundle, a manifest that cannot be read, or one of a later release.
        """
        path = Path(folder) / MANIFEST
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise BundleError(f"{str(folder)!r} is no bundle: it has no {MANIFEST}.") from None
        except ValueError as error:
            raise BundleError(f"{str(path)!r} is not JSON: {error}.") from None
        version = fields.get("version") if isinstance(fields, dict) else None
        if not isinstance(version, int):
            raise BundleError(f"{str(path)!r} is no manifest: it has no `version`.")
        if version > VERSION:
            raise BundleError(
                f"{str(path)!r} has version {version}; this deploy-rnn reads up to {VERSION}: install a newer one."
            )
        try:
            return cls(**fields | _parts(fields))
        except (KeyError, TypeError) as error:
            raise BundleError(f"{str(path)!r} is no manifest of version {version}: {error}.") from None

    def check(self, folder: str | Path) -> None:
        """Raises: BundleError: a file that is missing, or is not the one that was written."""
        for name, digest in self.sha256.items():
            path = Path(folder) / name
            if not path.is_file():
                raise BundleError(f"{str(folder)!r} lacks {name!r}, which its manifest names.")
            found = sha256(path)
            if found != digest:
                raise BundleError(
                    f"{str(path)!r} is not the file that was exported: its sha256 is {found[:12]}..., the manifest "
                    f"says {digest[:12]}...; export the bundle again."
                )


def _parts(fields: dict[str, Any]) -> dict[str, Any]:
    """What is more than a number, a text or a mapping of them."""
    tensors = {
        kind: tuple(Tensor(**{**each, "shape": tuple(each["shape"])}) for each in fields[kind])
        for kind in ("inputs", "outputs")
    }
    return {**tensors, "graphs": tuple(Graph(**each) for each in fields["graphs"])}


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
