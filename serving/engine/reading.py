"""Read a bundle or a single .onnx file into memory, each file once: what is checked is what is opened."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy_rnn.bundle import Manifest
from deploy_rnn.bundle_files import MOST_GRAPH_BYTES, read_settled
from deploy_rnn.errors import BundleError, LoadError
from deploy_rnn.onnx_bytes import FormatError, OnnxBytes, external_tensors
from deploy_rnn.plain_files import is_plain, read_plain


@dataclass(frozen=True)
class BundleContent:
    """A bundle that has been read and checked; its folder is not needed any more.

    Attributes:
        manifest: what it says of itself.
        graphs: name of each .onnx file -> its bytes, and those of its weights, which the graphs share.
    """

    manifest: Manifest
    graphs: Mapping[str, OnnxBytes]


def read_bundle(folder: Path) -> BundleContent:
    """Read a bundle as it was at one moment, however it is replaced meanwhile.

    Raises:
        BundleError: not a bundle, or a damaged one; or a graph whose weights are not a file of the bundle.
    """
    return read_settled(folder, _read_bundle)


def _read_bundle(folder: Path) -> BundleContent:
    manifest = Manifest.read(folder)
    graph_files = {}
    for row in manifest.graphs:
        graph_files[row.file] = manifest.read_file(folder, row.file, MOST_GRAPH_BYTES)
    weights: dict[str, np.ndarray] = {}
    graphs = {}
    for name, file in graph_files.items():
        path = folder / name
        graph = bytes(file.data)
        locations = _locations(path, graph, BundleError)
        for location in locations:
            if location not in manifest.sha256:
                raise BundleError(
                    f"{str(path)!r} has weights in {location!r}; they must be in a file that `sha256` of the manifest "
                    "lists."
                )
            if location not in weights:
                weights[location] = np.frombuffer(
                    manifest.read_file(folder, location).data, np.uint8
                )
        files = {location: weights[location] for location in locations}
        graphs[name] = OnnxBytes(str(path), graph, files)
    # Nothing is opened of what is left, such as the report: it tells whether the bundle is whole.
    for name in manifest.sha256.keys() - graph_files.keys() - weights.keys():
        manifest.check_file(folder, name)
    return BundleContent(manifest, graphs)


def read_model(path: Path) -> OnnxBytes:
    """Read an .onnx file, whoever wrote it, and the files next to it that hold its weights.

    Raises:
        LoadError: it cannot be read; it is not ONNX; or its weights are not in files of its folder.
    """
    graph = bytes(_read_beside(path, path.name))
    locations = _locations(path, graph, LoadError)
    files = {}
    for location in locations:
        if not is_plain(location):
            raise LoadError(
                f"{str(path)!r} has weights in {location[:60]!r}; it must be the plain name of a file in its folder."
            )
        files[location] = np.frombuffer(_read_beside(path, location), np.uint8)
    return OnnxBytes(str(path), graph, files)


def _locations(
    path: Path, graph: bytes, error_type: type[BundleError] | type[LoadError]
) -> list[str]:
    """The names of the files in which a graph has weights, each once."""
    try:
        tensors = external_tensors(graph)
    except FormatError as error:
        raise error_type(f"{str(path)!r} cannot be opened: {error}.") from None
    return sorted({tensor.location for tensor in tensors})


def _read_beside(path: Path, name: str) -> memoryview:
    """Read a file in the folder of a model."""
    most = MOST_GRAPH_BYTES if name == path.name else None
    try:
        return read_plain(path.parent, name, most=most, beside=path.name).data
    except OSError as error:
        raise LoadError(
            f"{str(path.parent / name)!r} cannot be read: {error.strerror or error}."
        ) from None
