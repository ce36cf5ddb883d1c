"""Read a bundle or a single .onnx file into memory, each file once: what is checked is what is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from deploy_rnn.bundle import Manifest
from deploy_rnn.bundle_files import MOST_GRAPH_BYTES, read_settled
from deploy_rnn.errors import BundleError, LoadError
from deploy_rnn.onnx_bytes import (
    ExternalTensor,
    FormatError,
    OnnxBytes,
    external_tensors,
    needed_bytes,
)
from deploy_rnn.plain_files import is_plain, read_plain

from .precision import chosen_precision


@dataclass(frozen=True)
class BundleContent:
    """A bundle that has been read and checked; its folder is not needed any more.

    Attributes:
        manifest: what it says of itself, with the graphs of one precision.
        graphs: name of each .onnx file -> its bytes, and those of its weights, which the graphs share.
    """

    manifest: Manifest
    graphs: Mapping[str, OnnxBytes]


def read_bundle(folder: Path, precision: str | None = None) -> BundleContent:
    """Read a bundle as it was at one moment, however it is replaced meanwhile.

    Args:
        folder: the bundle.
        precision: of the graphs that are read; None for that of all.

    Raises:
        BundleError: not a bundle, or a damaged one; a graph whose weights are not a file of the bundle; or it lacks
            the precision, or has several and None is asked for.
    """
    return read_settled(folder, partial(_read_bundle, precision=precision))


def _read_bundle(folder: Path, precision: str | None) -> BundleContent:
    manifest = Manifest.read(folder)
    chosen = chosen_precision(folder, manifest, precision)
    chosen_graphs = [graph for graph in manifest.graphs if graph.precision == chosen]
    manifest = replace(manifest, graphs=tuple(chosen_graphs))
    graphs: dict[str, bytes] = {}
    tensors: dict[str, list[ExternalTensor]] = {}
    for row in manifest.graphs:
        path = folder / row.file
        graphs[row.file] = bytes(manifest.read_file(folder, row.file, most=MOST_GRAPH_BYTES))
        tensors[row.file] = _external_tensors(path, graphs[row.file], BundleError)
        for tensor in tensors[row.file]:
            if tensor.location not in manifest.sha256:
                raise BundleError(
                    f"{str(path)!r} has weights in {tensor.location[:60]!r}; they must be in a file that `sha256` of "
                    "the manifest lists."
                )
    files: dict[str, np.ndarray] = {}
    for name, keep in needed_bytes(chain.from_iterable(tensors.values())).items():
        data = manifest.read_file(folder, name, keep=keep)
        _check_size(folder / name, data, keep, BundleError)
        files[name] = np.frombuffer(data, np.uint8)
    # Nothing is opened of what is left, such as the report and other precisions: it tells whether the bundle is whole.
    for name in manifest.sha256.keys() - graphs.keys() - files.keys():
        manifest.check_file(folder, name)
    models = {}
    for name, graph in graphs.items():
        models[name] = _with_files(folder / name, graph, tensors[name], files)
    return BundleContent(manifest, models)


def read_model(path: Path) -> OnnxBytes:
    """Read an .onnx file, whoever wrote it, and the files next to it that hold its weights.

    Raises:
        LoadError: it cannot be read; it is not ONNX; or its weights are not in files of its folder.
    """
    graph = bytes(_read_beside(path, path.name, most=MOST_GRAPH_BYTES))
    tensors = _external_tensors(path, graph, LoadError)
    files = {}
    for name, keep in needed_bytes(tensors).items():
        if not is_plain(name):
            raise LoadError(
                f"{str(path)!r} has weights in {name[:60]!r}; it must be the plain name of a file in its folder."
            )
        data = _read_beside(path, name, keep=keep)
        _check_size(path.parent / name, data, keep, LoadError)
        files[name] = np.frombuffer(data, np.uint8)
    return _with_files(path, graph, tensors, files)


def _check_size(
    path: Path,
    data: memoryview,
    needed: int | None,
    error_type: type[BundleError] | type[LoadError],
) -> None:
    if needed is not None and len(data) < needed:
        raise error_type(
            f"{str(path)!r} has {len(data):,} bytes of weights, the graph needs {needed:,}: it was cut off, or is that "
            "of another model; copy or export it again."
        )


def _with_files(
    path: Path, graph: bytes, tensors: Sequence[ExternalTensor], files: Mapping[str, np.ndarray]
) -> OnnxBytes:
    """A graph with those of the files that it has weights in."""
    locations = {tensor.location for tensor in tensors}
    return OnnxBytes(str(path), graph, tensors, {name: files[name] for name in locations})


def _external_tensors(
    path: Path, graph: bytes, error_type: type[BundleError] | type[LoadError]
) -> list[ExternalTensor]:
    try:
        return external_tensors(graph)
    except FormatError as error:
        raise error_type(f"{str(path)!r} cannot be opened: {error}.") from None


def _read_beside(
    path: Path, name: str, *, most: int | None = None, keep: int | None = None
) -> memoryview:
    """Read a file in the folder of a model."""
    try:
        return read_plain(path.parent, name, most=most, keep=keep, beside=path.name).data
    except OSError as error:
        raise LoadError(
            f"{str(path.parent / name)!r} cannot be read: {error.strerror or error}."
        ) from None
